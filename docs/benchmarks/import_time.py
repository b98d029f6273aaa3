"""What importing optax_clr costs over importing Optax: median of 15 fresh interpreters, ms.

python docs/benchmarks/import_time.py
"""

import statistics
import subprocess
import sys

MEASURE = """
import optax, time
start = time.perf_counter()
import optax_clr
print(1e3 * (time.perf_counter() - start))
"""

if __name__ == "__main__":
    times = [
        float(subprocess.run([sys.executable, "-c", MEASURE], capture_output=True).stdout)
        for _ in range(15)
    ]
    print(f"{statistics.median(times):.0f} ms (lowest {min(times):.0f}, highest {max(times):.0f})")
