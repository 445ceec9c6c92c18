"""r1jax: the DeepSeek-R1 training system for JAX."""

__version__ = "0.6.0"
