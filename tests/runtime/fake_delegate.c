/* An accelerator made of software: an external TFLite delegate that computes SOFTMAX and can die on demand.
 *
 * The structures are the beginnings of those in tensorflow/lite/core/c/common.h, which have kept their order from
 * TensorFlow 2.5 on; what later versions append is not used.  Options, off when absent:
 *   die_after=N     every invoke after the first N returns an error
 *   crash_after=N   the invoke after the first N ends the process with SIGABRT
 *   hang_after=N    the invoke after the first N never returns
 *   dead_while=PATH while this file exists, creation fails and every invoke returns an error
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { kOk = 0, kError = 1, kFloat32 = 1, kInt8 = 9, kSoftmax = 25 };

typedef struct { int size; int data[]; } IntArray;
typedef struct { float scale; int32_t zero_point; } QuantizationParams;
typedef struct {
  int type;
  union { float* f; int8_t* int8; void* raw; } data;
  IntArray* dims;
  QuantizationParams params;
  int allocation_type;
  size_t bytes;
} TensorHead;
typedef struct { IntArray *inputs, *outputs, *intermediates, *temporaries; void *user_data, *builtin_data; } NodeHead;

typedef struct Context Context;
typedef struct {
  void* (*init)(Context*, const char*, size_t);
  void (*free)(Context*, void*);
  int (*prepare)(Context*, NodeHead*);
  int (*invoke)(Context*, NodeHead*);
  const char* (*profiling_string)(const Context*, const NodeHead*);
  int32_t builtin_code;
  const char* custom_name;
  int version;
  void* later[6]; /* passed by value: longer than any version's, and zero */
} Registration;
typedef struct Delegate {
  void* data;
  int (*prepare)(Context*, struct Delegate*);
  int (*copy_from)(Context*, struct Delegate*, int, void*);
  int (*copy_to)(Context*, struct Delegate*, int, void*);
  void (*free_handle)(Context*, struct Delegate*, int*);
  int64_t flags;
  void* later[4];
} Delegate;
struct Context {
  size_t tensors_size;
  int (*get_execution_plan)(Context*, IntArray**);
  char* tensors; /* elements are longer than TensorHead: see tensor_at */
  void* impl;
  int (*resize_tensor)(Context*, void*, IntArray*);
  void (*report_error)(Context*, const char*, ...);
  int (*add_tensors)(Context*, int, int*);
  int (*get_node)(Context*, int, NodeHead**, Registration**);
  int (*replace)(Context*, Registration, const IntArray*, Delegate*);
};
typedef struct { Delegate* delegate; IntArray *nodes, *inputs, *outputs; } DelegateParams;

typedef struct { long die_after, crash_after, hang_after, invokes; char dead_while[512]; } State;

static int is_dead(const State* s) { return s->dead_while[0] && access(s->dead_while, F_OK) == 0; }

/* sizeof(TfLiteTensor) in 64-bit builds of 2.5 to LiteRT 2.3; checked against the tensor's own dimensions. */
enum { kTensorSize = 112 };
static TensorHead* tensor_at(Context* c, int i) { return (TensorHead*)(c->tensors + (size_t)i * kTensorSize); }

static void* init(Context* c, const char* buffer, size_t length) {
  (void)c, (void)length;
  return ((const DelegateParams*)buffer)->delegate->data;
}
static void release(Context* c, void* p) { (void)c, (void)p; }
static int prepare(Context* c, NodeHead* n) { (void)c, (void)n; return kOk; }

static int invoke(Context* c, NodeHead* node) {
  State* s = node->user_data;
  s->invokes++;
  if (s->crash_after >= 0 && s->invokes > s->crash_after) abort();
  if (s->hang_after >= 0 && s->invokes > s->hang_after) for (;;) pause();
  if ((s->die_after >= 0 && s->invokes > s->die_after) || is_dead(s)) {
    c->report_error(c, "fake accelerator: device lost");
    return kError;
  }
  const TensorHead* in = tensor_at(c, node->inputs->data[0]);
  TensorHead* out = tensor_at(c, node->outputs->data[0]);
  int n = in->dims->data[in->dims->size - 1], int8 = in->type == kInt8;
  int rows = (int)(in->bytes / (int8 ? 1 : 4)) / n;
  for (int r = 0; r < rows; r++) {
    double sum = 0, top = -1e30, x;
    for (int pass = 0; pass < 3; pass++)
      for (int i = r * n; i < (r + 1) * n; i++) {
        x = int8 ? (in->data.int8[i] - in->params.zero_point) * (double)in->params.scale : in->data.f[i];
        if (pass == 0) top = fmax(top, x);
        else if (pass == 1) sum += exp(x - top);
        else if (!int8) out->data.f[i] = (float)(exp(x - top) / sum);
        else out->data.int8[i] = (int8_t)fmin(127, rint(exp(x - top) / sum / out->params.scale) + out->params.zero_point);
      }
  }
  return kOk;
}

static int delegate_prepare(Context* c, Delegate* d) {
  IntArray* plan;
  if (c->get_execution_plan(c, &plan) != kOk) return kError;
  IntArray* mine = calloc(1, sizeof(IntArray) + sizeof(int) * (size_t)plan->size);
  for (int i = 0; i < plan->size; i++) {
    NodeHead* node;
    Registration* registration;
    if (c->get_node(c, plan->data[i], &node, &registration) != kOk) return kError;
    if (registration->builtin_code != kSoftmax) continue;
    const TensorHead* in = tensor_at(c, node->inputs->data[0]);
    if (in->type == kInt8 || in->type == kFloat32) mine->data[mine->size++] = plan->data[i];
  }
  Registration r = {init, release, prepare, invoke, NULL, 0, "FakeAccelerator", 1, {0}};
  int status = mine->size ? c->replace(c, r, mine, d) : kOk;
  free(mine);
  return status;
}

Delegate* tflite_plugin_create_delegate(char** keys, char** values, size_t count, void (*report)(const char*)) {
  State* s = calloc(1, sizeof(State));
  s->die_after = s->crash_after = s->hang_after = -1;
  for (size_t i = 0; i < count; i++) {
    if (!strcmp(keys[i], "die_after")) s->die_after = atol(values[i]);
    else if (!strcmp(keys[i], "crash_after")) s->crash_after = atol(values[i]);
    else if (!strcmp(keys[i], "hang_after")) s->hang_after = atol(values[i]);
    else if (!strcmp(keys[i], "dead_while")) snprintf(s->dead_while, sizeof s->dead_while, "%s", values[i]);
    else {
      report("fake accelerator: unknown option ");
      report(keys[i]);
      free(s);
      return NULL;
    }
  }
  if (is_dead(s)) {
    report("fake accelerator: no device");
    free(s);
    return NULL;
  }
  Delegate* d = calloc(1, sizeof(Delegate));
  d->data = s;
  d->prepare = delegate_prepare;
  return d;
}

void tflite_plugin_destroy_delegate(Delegate* d) {
  if (d) free(d->data);
  free(d);
}
