"""A model that takes numbers, not pictures: each line of a CSV file is one sample, of a sensor say.

python examples/run_on_numbers.py vibration.ferry samples.csv
"""

from __future__ import annotations

import sys

import numpy as np
from edgeferry_runtime import Model


def main(bundle: str, table: str) -> None:
    with Model.open(bundle) as model:
        (spec,) = model.variant.inputs
        for row in np.loadtxt(table, dtype=np.float32, delimiter=",", ndmin=2):
            model.set_inputs({spec.name: row.reshape(spec.shape)})  # quantised as the model wants it
            model.invoke()
            print(model.decode().headline())
            for name, values in model.outputs().items():
                print(f"  {name}: {np.round(values.ravel(), 3).tolist()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
