"""Packaging. Ranges: each lower bound was run (README, "Versions tested")."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
  r'^__version__ = "(.+)"$', (ROOT / "r1jax" / "__init__.py").read_text(), re.MULTILINE
)[1]

# flax, optax and orbax-checkpoint move together with jax; pip picks what fits it.
REQUIRES = [
  "absl-py>=2.3.0",
  "array_record>=0.8.1",
  "etils[epath]>=1.13.0",
  "flax>=0.12.6",
  "gguf>=0.18.0",
  "grain>=0.2.15",
  "huggingface_hub>=0.36.0",
  "importlib_resources>=6.4.0",  # tensorflow-datasets imports it, and names it nowhere
  "jax>=0.10.0,<0.13",
  "jinja2>=3.1.4",
  "latex2sympy2-extended>=1.10.2",  # of math-verify, which does not offer its settings
  "math-verify>=0.8.0",
  "ml-collections>=1.1.0",
  "ml_dtypes>=0.5.3",
  "numpy>=2.1.0",
  "optax>=0.2.6",
  "orbax-checkpoint>=0.11.33",
  "protobuf>=7.36.1",  # of sentencepiece's model files, which names it nowhere
  "py3langid>=0.4.0",
  "pyarrow>=20.0.0",
  "reasoning-gym>=0.1.23",
  "requests>=2.32.4",
  "rich>=14.0.0",
  "safetensors>=0.6.2",
  "sentencepiece>=0.2.3",
  "tensorboardX>=2.6.4",
  "tensorflow-datasets>=4.9.10",
  "tokenizers>=0.22.0",
]
TEST = ["matplotlib>=3.10.0", "pytest>=8.4.0"]
NOTEBOOKS = ["jupyterlab>=4.4.0", "matplotlib>=3.10.0"]

setup(
  name="r1jax",
  version=VERSION,
  description="The DeepSeek-R1 training system for JAX",
  long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=find_packages(include=["r1jax", "r1jax.*"]),
  package_data={"r1jax": ["*.html"]},
  install_requires=REQUIRES,
  extras_require={
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda13]"],
    "lm_eval": ["lm-eval>=0.4.12"],
    "test": TEST,
    "notebooks": NOTEBOOKS,
    "dev": [*TEST, *NOTEBOOKS, "pre-commit>=4.2.0", "ruff>=0.17.0"],
  },
)
