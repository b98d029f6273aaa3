#!/usr/bin/env bash
# What a range test costs on one GPU, and whether it works there, in at most eleven minutes:
#     bash docs/benchmarks/on_gpu.sh [RESULT]      # the table is printed, and written to RESULT
# Needs the package with its extras "dev" and "examples", and a JAX that finds the GPU; nothing is
# downloaded. PyTorch and its finders are compared where they are installed, with CUDA.
set -uo pipefail
cd "$(dirname "$0")/../.."
result=${1:-gpu.txt}
export XLA_PYTHON_CLIENT_PREALLOCATE=false # beside PyTorch, and beside a second process of the tests

# Run a part, for so many seconds at most, and say how it ended; the others run in any case.
part() {
  local title=$1 seconds=$2 started=$SECONDS status
  shift 2
  printf '\n== %s\n' "$title"
  timeout "$seconds" "$@" 2>&1
  status=$?
  [ "$status" = 124 ] && echo "stopped: it took more than its $seconds seconds"
  printf -- '-- ended with %s after %s s\n' "$status" "$((SECONDS - started))"
}

{
  date --utc +%F
  python - <<'END'
import importlib.metadata
import platform

import jax

device = jax.devices()[0]
print(f"{device.device_kind}, {jax.device_count()} of {jax.default_backend()}")
names = ("jax", "jaxlib", "optax", "flax", "numpy", "torch", "torch-lr-finder")
for name in names:
    try:
        print(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        print(name, "not installed")
print("Python", platform.python_version())
if device.platform == "cpu":
    print("JAX has found no GPU: these are the times of a CPU")
END
  part "the range test against a bare scan, and against a loop over steps (a, b)" 90 \
    python docs/benchmarks/range_test.py a b --quick
  part "lanes in one program (d), streams (f)" 90 python docs/benchmarks/range_test.py d f --quick
  if python -c "import torch, sys; sys.exit(not torch.cuda.is_available())" 2>/dev/null; then
    part "PyTorch's finders on the same GPU (c)" 90 python docs/benchmarks/range_test.py c --quick
  fi
  part "an example, as it is written" 60 python examples/digits.py
  part "the tests" 300 python -m pytest --quiet -n 8 -p no:cacheprovider
} | tee "$result"
