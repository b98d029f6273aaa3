"""How XLA compiles quickly, which is most of what the tests take time for."""

import importlib.metadata

FLAGS = ["--xla_backend_optimization_level=0"]
# The newer way of compiling what is fused takes twice as long; other versions know no such flag.
if importlib.metadata.version("jaxlib").startswith(("0.8.", "0.9.", "0.10.")):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
