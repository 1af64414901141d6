"""Making models smaller by training them further: pruning, quantisation-aware training, distillation."""
