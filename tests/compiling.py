"""How XLA compiles quickly, which is most of what the tests take time for."""

import importlib.metadata

FLAGS = ["--xla_backend_optimization_level=0"]
# A flag that a version does not know ends the process.
JAXLIB = importlib.metadata.version("jaxlib")
# Parts of a program are not compiled side by side: the processes of a run keep all cores busy.
if JAXLIB.startswith(("0.4.35", "0.8.", "0.9.", "0.10.")):
    FLAGS.append("--xla_cpu_parallel_codegen_split_count=1")
# The newer way of compiling what is fused takes twice as long.
if JAXLIB.startswith(("0.8.", "0.9.", "0.10.")):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
