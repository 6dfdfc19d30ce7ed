"""labctl: a hardware test lab and benchmarking harness for people who build kernels and hypervisors."""

__version__ = "0.1.0"
