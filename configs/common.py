"""Sections that experiments start from: every setting of a stage, once.

An experiment changes what it needs. R1's published numbers (arXiv 2501.12948 and its
supplement) stand here where they exist; "R1:" marks them.
"""

from ml_collections import ConfigDict, config_dict

from r1jax.errors import InputError


def run() -> ConfigDict:
  """What concerns the run as a whole."""
  c = ConfigDict()
  c.seed = 0
  # Names of the stages, in order; the settings of the stage NAME are `c.NAME`.
  c.stages = ()
  # Size of each mesh axis; -1 takes the devices that are left.
  c.mesh = ConfigDict({"data": -1, "fsdp": 1, "tp": 1, "ep": 1})
  # CPU devices to split the machine into; 0 leaves it to jax.
  c.cpu_devices = 0
  c.model = ConfigDict(
    {
      # A .gguf file or a Hugging Face folder; "" makes fresh weights of a preset.
      "path": "",
      "preset": "tiny",
      "shape": ConfigDict(),  # fields of ModelConfig that differ from the preset
      "compute_dtype": "auto",  # float32 on CPU, bfloat16 elsewhere
    }
  )
  c.tokenizer = ConfigDict(
    {
      # "" takes the model's own, or trains one on the first stage's examples.
      "path": "",
      "model_type": "char",
      "vocab_size": config_dict.placeholder(int),
      "symbols": ("<think>", "</think>", "<answer>", "</answer>"),
    }
  )
  c.checkpoint = ConfigDict(
    {
      "save_every": 20,  # steps
      "keep": 2,
      "keep_every": config_dict.placeholder(int),
      "step": config_dict.placeholder(int),  # take up this one, not the last
      "skip_damaged": False,
    }
  )
  # What happens to a stage in the run directory that had other settings: "error", or
  # "rerun" it and what follows from it.
  c.on_change = "error"
  c.log = ConfigDict(
    {
      "tensorboard": True,
      "wandb": "",  # a project name
      "sample_every": 10,  # steps; 0 shows none
      "watchdog_s": 900.0,  # a phase without progress for so long prints all stacks
    }
  )
  # Steps of every stage that are traced, into profile/STAGE/step_NUMBER/ of the run
  # directory; the first compiles.
  c.profile = ConfigDict({"steps": ()})
  return c


def template(name: str = "r1_zero", suffix: str = "") -> ConfigDict:
  """The text around a question: "plain", "r1_zero" (R1's published one) or "chat"."""
  return ConfigDict({"template": name, "suffix": suffix, "system": ""})


def optimizer(learning_rate: float) -> ConfigDict:
  """AdamW. R1 does not publish betas, decay, warm-up or clipping of its RL."""
  return ConfigDict(
    {
      # Less memory: "muon" or "adafactor", moments in "bfloat16", or in the host's
      # memory (offload). r1jax/optim.py has the bytes of each.
      "kind": "adamw",
      "moment_dtype": "float32",
      "offload": False,
      "learning_rate": learning_rate,
      "schedule": "constant",
      "warmup_steps": 0,
      "total_steps": config_dict.placeholder(int),
      "final_fraction": 0.0,
      "b1": 0.9,
      "b2": 0.95,
      "eps": 1e-8,
      "weight_decay": 0.0,
      "no_decay": (".*norm",),
      "frozen": (),
      "grad_clip": 1.0,
    }
  )


def mixture() -> ConfigDict:
  """Of models with experts. DeepSeek-V3's pre-training: 1e-4, and a rate of 1e-3."""
  return ConfigDict(
    {
      "balance_coef": 0.0,  # weight of the loss of uneven loads within a sequence
      "bias_rate": 0.0,  # of an update, by which the routers' biases follow the loads
    }
  )


def adapter() -> ConfigDict:
  """LoRA, off by default. Best learning rates are about ten times those without."""
  return ConfigDict(
    {
      "rank": 0,  # above 0 an adapter is trained alone; `optim` then sees its paths
      "alpha": 32.0,
      # Linear layers to adapt. Not by default: routers, which are small and steer all
      # else, and the module that predicts one token further, which GRPO has no loss of.
      "paths": ("(dense|layers)/(attn|mlp|moe/experts|moe/shared)/.*",),
    }
  )


def sft() -> ConfigDict:
  """Supervised training. R1: 2 to 3 epochs, cosine from 5e-5 to 5e-6, batch 128."""
  s = ConfigDict()
  s.kind = "sft"
  s.init = ""  # a stage before this one, or "" for config.model
  s.num_steps = 100
  s.train_on = "completion"  # or "all" tokens, as in pre-training
  s.examples = ConfigDict({"source": "worked"})
  s.optim = optimizer(5e-5)
  s.optim.schedule = "cosine"
  s.optim.final_fraction = 0.1
  s.optim.total_steps = s.get_ref("num_steps")
  # A step is `microbatches` times `rows` rows of `row_length` tokens.
  s.training = ConfigDict(
    {
      "rows": 8,
      "microbatches": 1,
      "row_length": 512,
      "remat": "none",
      # Weight of the loss of the module that predicts one token further. DeepSeek-V3's
      # pre-training: 0.3, then 0.1.
      "mtp_coef": 0.0,
    }
  )
  s.moe = mixture()
  s.lora = adapter()
  return s


def grpo() -> ConfigDict:
  """GRPO as R1-Zero used it. A step is one rollout and its updates."""
  s = ConfigDict()
  s.kind = "grpo"
  s.init = ""
  # R1: 10,400 updates, which is 650 rollouts of 16 mini-batches.
  s.num_steps = 650
  # Words in a row that a training problem may not share with a held-out one; 0 is off.
  s.decontaminate = 10
  s.rollout = ConfigDict(
    {
      "prompts": 512,  # R1: 8,192 answers of a rollout, 16 to a question
      "group_size": 16,  # R1
      "prompt_length": 512,  # tokens; a longer prompt is an error
      "max_tokens": 32_768,  # R1: until update 8,200, then 65,536
      "slots": 0,  # answers decoded at a time; 0 is all
      "temperature": 1.0,  # R1
      "top_k": 0,
      "top_p": 1.0,
      "min_p": 0.0,
      # Texts that end an answer, such as "</answer>"; the end token does so too.
      "stop_strings": (),
      # Speculative decoding, which changes no token: "ngram" drafts what followed the
      # last tokens before, in the prompt or the group's answers; "mtp" (1 token) asks
      # the module that predicts one further. Worth it where few rows are decoded.
      "draft": "",
      "draft_tokens": 0,
      # Prompts asked beyond `prompts`: a rollout ends when `prompts` groups are
      # complete, and what is unfinished goes on in the next one.
      "oversample": 0,
      # 1: a rollout is started before the one before it is judged and trained on.
      "lag": 0,
      # What answers are drawn with, evaluations aside: weights in "int8" (one scale for
      # each output channel), caches in "bfloat16", "float8_e4m3fn" or "int8" (one for
      # each head and token); "" is the compute dtype. Smaller to hold and to read, but
      # not on CPU, see r1jax/models/quantized.py. Log-probs then differ from the
      # trainer's (policy/logp_gap_mean); `loss.importance_cap` corrects for it.
      "weights": "",
      "cache": "",
    }
  )
  s.reward = ConfigDict(
    {
      # R1: the same weight for both; a part without weight is only logged.
      "weights": ConfigDict({"accuracy": 1.0, "format": 1.0}),
      "normalise": "none",  # or "per_part"
      "language": "en",  # of the part "language"
      "num_workers": 2,
      "timeout_s": 10.0,
      "batch_timeout_s": 300.0,
      "memory_limit_mb": 1024,
    }
  )
  # The deviation that divides advantages: "population", "sample" or "none".
  s.advantage = ConfigDict({"std": "population", "eps": 0.0})
  # Answers that max_tokens cut off: "keep", "mask" or "penalise" by so many points.
  s.truncated = ConfigDict({"kind": "keep", "penalty": 0.0})
  s.loss = ConfigDict(
    {
      "clip_low": 10.0,  # R1: ratios in [-9, 11], so no lower bound at all
      "clip_high": 10.0,
      "kl_coef": 0.001,  # R1
      "kl_estimator": "k3",  # R1
      "reduction": "sequence_mean",
      "length_constant": config_dict.placeholder(float),
      # Truncated importance sampling for tokens of older or otherwise computed
      # weights: the most that a token may weigh; 0 is off.
      "importance_cap": 0.0,
    }
  )
  s.moe = mixture()
  # Tokens go through the experts that they went through when they were sampled, in the
  # update and in the reference's scores.
  s.moe.replay = False
  s.lora = adapter()
  # R1: the reference becomes the policy every 400 updates, here 25 rollouts; 0: never.
  s.reference = ConfigDict({"refresh_every": 25})
  s.optim = optimizer(3e-6)  # R1
  # Prompts are dealt at random, with all their answers, to `minibatches` of as many
  # answers each (R1: 16, of answers dealt one by one), which are packed into rows;
  # `rows` of them go through the model at a time. A prompt lies once in a row, before
  # its answers there: prompt_length + group_size * (max_tokens + 1) hold any group.
  s.training = ConfigDict(
    {"rows": 8, "row_length": 33_280, "minibatches": 16, "remat": "full"}
  )
  s.eval = ConfigDict(
    {
      "every": 10,  # steps; 0: before the first and after the last alone
      "sets": ConfigDict(),  # name -> settings as of `data`
      "max_tokens": 32_768,
      "batch": 512,  # problems answered at a time
      "slots": 0,
      "samples": 1,
      "temperature": 0.0,  # greedy
      "top_p": 1.0,
      # Not for training, whose losses do not know of them.
      "repetition_penalty": 1.0,
      "min_tokens": 0,
      "stop_strings": (),
    }
  )
  return s


def gym_task(task: str, *, name: str, size: int, **task_args) -> ConfigDict:
  """Problems of a reasoning-gym task; sets of different names have different ones."""
  return ConfigDict(
    {
      "source": "reasoning_gym",
      "task": task,
      "split": name,
      "size": size,
      "seed": 0,
      "task_args": ConfigDict(task_args),
    }
  )


def worked(
  task: str, *, size: int, think_share: float = 1.0, **task_args
) -> ConfigDict:
  """Worked examples of a task; a share of them in `<think>` tags."""
  return ConfigDict(
    {
      "source": "worked",
      "task": task,
      "size": size,
      "seed": 0,
      "think_share": think_share,
      "task_args": ConfigDict(task_args),
    }
  )


def no_arg(arg: str | None, *, allowed: tuple[str, ...] = ()) -> None:
  """Refuses what follows a colon in --config=FILE:ARG, but for `allowed`."""
  if arg is not None and arg not in allowed:
    known = ", ".join(allowed) or "none"
    raise InputError(f"--config=FILE:{arg}: no such variant; there are: {known}")
