"""The same work done by another library, in an interpreter of its own.

    PYTHON tests/benchmarks/peers.py

`peer_process.py` starts it. Of the lines that it reads, the first is the job, and every
further one asks for one call; each is answered by a line, both of JSON. What the peer's
libraries print goes to standard error. Nothing of r1jax is imported, so that PYTHON
needs the peer's packages alone.

`transformers` is as its user writes it: attention, cache and what else there is a
choice of are the library's defaults, but for gradient checkpointing, which is off, and
logits, which are made of completions only. Prompts of equal length need no padding, and
no id ends an answer. `trl` is its GRPOTrainer, told the same numbers.
"""

import dataclasses
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

# Rows that go through the model at a time; the fastest of them is taken.
ROWS = (4, 8, 16)
TRL_ROWS = 8
_PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets")


class Turns:
  """Reads what is asked for, and answers."""

  def __init__(self):
    self._answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

  def next(self) -> dict[str, Any]:
    """What is asked for next; ends the process where nobody asks any more."""
    line = sys.stdin.readline()
    if not line:
      sys.exit(0)
    return json.loads(line)

  def answer(self, said: Mapping[str, Any]) -> None:
    print(json.dumps(said), file=self._answers, flush=True)


@dataclasses.dataclass(frozen=True)
class Job:
  """What is to be done; `peer_process.job_of` says what it is made of.

  Attributes:
    folder: config.json and, where `has_weights`, the weights.
    dtype, device: words of torch.
    prompts: ids of each.
    completions, advantage: of each row of a mini-batch, and `prompt_of` it.
    parts: mini-batches of a step.
    calls: how often a call is going to be asked for.
  """

  peer: str
  name: str
  folder: str
  has_weights: bool
  dtype: str
  device: str
  prompts: list[list[int]]
  completions: list[list[int]]
  prompt_of: list[int]
  advantage: list[float]
  samples: int
  max_tokens: int
  parts: int
  temperature: float
  top_k: int
  top_p: float
  min_p: float
  loss: dict[str, float]
  optim: dict[str, float]
  calls: int

  def load(self, dtype: str) -> Any:
    """The model, on its device."""
    import torch
    import transformers

    models = transformers.AutoModelForCausalLM
    if self.has_weights:
      model = models.from_pretrained(self.folder, dtype=getattr(torch, dtype))
    else:
      torch.manual_seed(0)
      config = transformers.AutoConfig.from_pretrained(self.folder)
      model = models.from_config(config, dtype=getattr(torch, dtype))
    model.generation_config = transformers.GenerationConfig()  # without a stop id
    return model.to(self.device)

  def rows(self) -> Any:
    """Prompts with their completions, [B, P + T]."""
    import torch

    pairs = zip(self.prompt_of, self.completions, strict=True)
    ids = [self.prompts[prompt] + completion for prompt, completion in pairs]
    return torch.tensor(ids, device=self.device)

  def wait(self) -> None:
    """Until the device is done."""
    import torch

    if self.device == "cuda":
      torch.cuda.synchronize()

  def peak(self) -> dict[str, float]:
    import torch

    if self.device == "cuda":
      return {"peak_device_gib": torch.cuda.max_memory_allocated() / 2**30}
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux
    return {"peak_rss_gib": kib / 2**20}


# What is said of it, and a call that returns what it counted.
Work = tuple[dict[str, Any], Callable[[], dict[str, float]]]


def rollout(job: Job) -> Work:
  """`generate` of all samples of all prompts at a time."""
  import torch
  import transformers

  model, prompts = job.load(job.dtype).eval(), torch.tensor(job.prompts)
  how = transformers.GenerationConfig(
    do_sample=True,
    num_return_sequences=job.samples,
    max_new_tokens=job.max_tokens,
    temperature=job.temperature,
    top_k=job.top_k,
    top_p=job.top_p,
    min_p=job.min_p or None,
    pad_token_id=0,
  )

  def call() -> dict[str, float]:
    ids = prompts.to(job.device)
    out = model.generate(
      ids, attention_mask=torch.ones_like(ids), generation_config=how
    )
    drawn = out[:, ids.shape[1] :].cpu()
    return {"tokens": drawn.numel()}

  return {"attention": model.config._attn_implementation}, call


def score(job: Job) -> Work:
  """Log-probs of the completions of a mini-batch."""
  import torch

  model, ids = job.load(job.dtype).eval(), job.rows()

  @torch.no_grad()
  def one(rows: slice) -> Any:
    return _log_probs(model, ids[rows], job)

  rows = _fastest(one, len(ids), job)

  def call() -> dict[str, float]:
    logp = torch.cat([one(part) for part in _parts(len(ids), rows)])
    return {"tokens": ids.numel(), "logp_mean": logp.mean().item()}

  return {"attention": model.config._attn_implementation, "rows": rows}, call


def update(job: Job) -> Work:
  """Forward and backward pass of a mini-batch, and AdamW."""
  import torch

  model, ids = job.load(job.dtype).train(), job.rows()
  advantage = torch.tensor(job.advantage, device=job.device)[:, None]
  reference = torch.full((len(ids), job.max_tokens), job.loss["logp_ref"])
  reference = reference.to(job.device)
  optimizer = torch.optim.AdamW(
    model.parameters(),
    lr=job.optim["learning_rate"],
    betas=(job.optim["b1"], job.optim["b2"]),
    eps=job.optim["eps"],
    weight_decay=job.optim["weight_decay"],
    fused=True,
  )

  def one(rows: slice) -> None:
    logp = _log_probs(model, ids[rows], job)
    ratio = torch.exp(logp - logp.detach())
    inside = ratio.clamp(1 - job.loss["clip_low"], 1 + job.loss["clip_high"])
    cost = -torch.minimum(ratio * advantage[rows], inside * advantage[rows])
    if job.loss["kl_coef"]:
      apart = reference[rows] - logp
      cost = cost + job.loss["kl_coef"] * (torch.exp(apart) - apart - 1)
    (cost.mean(1).sum() / len(ids)).backward()

  rows = _fastest(one, len(ids), job)
  optimizer.zero_grad()

  def call() -> dict[str, float]:
    for part in _parts(len(ids), rows):
      one(part)
    torch.nn.utils.clip_grad_norm_(model.parameters(), job.optim["grad_clip"])
    optimizer.step()
    optimizer.zero_grad()
    return {"tokens": ids.numel()}

  return {"attention": model.config._attn_implementation, "rows": rows}, call


def _log_probs(model: Any, ids: Any, job: Job) -> Any:
  """Of each row's completion, [B, T] float32."""
  kept = job.max_tokens
  out = model(input_ids=ids, use_cache=False, logits_to_keep=kept + 1)
  logits = out.logits[:, :-1].float() / job.temperature
  chosen = logits.gather(-1, ids[:, -kept:, None])[..., 0]
  return chosen - logits.logsumexp(-1)


def _parts(num_rows: int, rows: int) -> list[slice]:
  return [slice(start, start + rows) for start in range(0, num_rows, rows)]


def _fastest(one: Callable[[slice], Any], num_rows: int, job: Job) -> int:
  """The number of rows at a time with which a row takes the least."""
  a_row_s = {}
  for rows in sorted({min(rows, num_rows) for rows in ROWS}):
    one(slice(rows))  # the first time allocates
    job.wait()
    began = time.perf_counter()
    one(slice(rows))
    job.wait()
    a_row_s[rows] = (time.perf_counter() - began) / rows
  return min(a_row_s, key=a_row_s.get)


def serve(job: Job, turns: Turns) -> None:
  about, call = WORK[job.name](job)
  turns.answer(versions(about))
  while True:
    turns.next()
    seen = call()
    job.wait()
    turns.answer(seen | job.peak())


def train_trl(job: Job, turns: Turns) -> None:
  """Steps of GRPOTrainer; the trainer owns the loop and waits to be asked for each.

  Of its time that of `generate` and of the reference's passes are told apart, the rest
  is called update.
  """
  import datasets
  import torch
  import transformers
  import trl

  model = job.load("float32")
  if not job.has_weights:  # from there the trainer takes its reference
    model.save_pretrained(job.folder)
    model = model.from_pretrained(job.folder)
  # The tokenizer's stop id lies behind the model's ids, so that it is never drawn.
  tokenizer = _numbers(model.config.vocab_size)
  answers = len(job.prompts) * job.samples
  rows = min(TRL_ROWS, answers // job.parts)
  is_cpu = job.device == "cpu"
  how = trl.GRPOConfig(
    output_dir=os.path.join(job.folder, "trl"),
    use_cpu=is_cpu,
    bf16=not is_cpu,
    per_device_train_batch_size=rows,
    gradient_accumulation_steps=answers // job.parts // rows,
    steps_per_generation=answers // rows,
    num_generations=job.samples,
    max_completion_length=job.max_tokens,
    max_steps=job.calls * job.parts,
    gradient_checkpointing=False,
    temperature=job.temperature,
    top_k=job.top_k,
    top_p=job.top_p,
    min_p=job.min_p or None,
    beta=job.loss["kl_coef"],
    epsilon=job.loss["clip_low"],
    epsilon_high=job.loss["clip_high"],
    loss_type="grpo",
    learning_rate=job.optim["learning_rate"],
    lr_scheduler_type="constant",
    adam_beta1=job.optim["b1"],
    adam_beta2=job.optim["b2"],
    adam_epsilon=job.optim["eps"],
    weight_decay=job.optim["weight_decay"],
    max_grad_norm=job.optim["grad_clip"],
    logging_strategy="no",
    save_strategy="no",
    report_to="none",
    disable_tqdm=True,
  )
  spent = {"rollout_s": 0.0, "score_s": 0.0}

  def timed(function: Callable, phase: str) -> Callable:
    def run(*args: Any, **kwargs: Any) -> Any:
      began = time.perf_counter()
      out = function(*args, **kwargs)
      job.wait()
      spent[phase] += time.perf_counter() - began
      return out

    return run

  class Paced(transformers.TrainerCallback):
    """A step of ours is `parts` of the trainer's."""

    def on_step_begin(self, args, state, control, **unused):
      if state.global_step % job.parts == 0:
        turns.next()
        spent.update(dict.fromkeys(spent, 0.0))
        self.began = time.perf_counter()

    def on_step_end(self, args, state, control, **unused):
      if state.global_step % job.parts == 0:
        job.wait()
        rest_s = time.perf_counter() - self.began - sum(spent.values())
        seen = {"tokens": answers * job.max_tokens, **spent, "update_s": rest_s}
        turns.answer(seen | job.peak())

  texts = [_text(prompt) for prompt in job.prompts]
  trainer = trl.GRPOTrainer(
    model=model,
    reward_funcs=_num_kinds,
    args=how,
    train_dataset=datasets.Dataset.from_dict({"prompt": texts * job.calls}),
    processing_class=tokenizer,
    callbacks=[Paced()],
  )
  trainer.model.generate = timed(trainer.model.generate, "rollout_s")
  if trainer.ref_model is not None:
    trainer.ref_model.forward = timed(trainer.ref_model.forward, "score_s")
  about = {
    "attention": model.config._attn_implementation,
    "rows": rows,
    "optimizer": str(how.optim),
    "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    "autocast": "bfloat16" if how.bf16 else "",
    "device": str(torch.device(job.device)),
  }
  turns.answer(versions(about))
  trainer.train()


def _num_kinds(completions: list[str], **unused: Any) -> list[float]:
  """A reward that differs within a group and costs nothing."""
  return [float(len(set(text.split()))) for text in completions]


def _text(ids: list[int]) -> str:
  return " ".join(map(_word, ids))


def _word(number: int) -> str:
  return f"w{number:07}"  # none is a part of another


def _numbers(vocab: int) -> Any:
  """A tokenizer whose words are the ids, with a stop word behind them."""
  import tokenizers
  import transformers

  words = {_word(number): number for number in range(vocab)} | {"<end>": vocab}
  made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<end>"))
  made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=made, eos_token="<end>", pad_token=_word(0)
  )


def versions(about: Mapping[str, Any]) -> dict[str, Any]:
  """What is said before the first call."""
  import torch

  found = {}
  for name in _PACKAGES:
    try:
      found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      continue
  return {
    **about,
    "threads": torch.get_num_threads(),
    "versions": {"python": sys.version.split()[0], **found},
  }


WORK = {"rollout": rollout, "score": score, "update": update}


def main() -> None:
  turns = Turns()
  job = Job(**turns.next())
  if job.peer == "trl":
    train_trl(job, turns)
  else:
    serve(job, turns)


if __name__ == "__main__":
  main()
