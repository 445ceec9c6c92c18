"""Sections that experiments start from: every setting of a stage, once.

An experiment changes what it needs. R1's published numbers (arXiv 2501.12948 and its
supplement) stand here where they exist; "R1:" marks them.
"""

from collections.abc import Mapping

from ml_collections import ConfigDict, config_dict

from r1jax.errors import InputError, one_of
from r1jax.objectives import recipes

# Settings of a rollout that stages do not have which wait for all answers.
OVERLAP = ("oversample", "max_age", "lag")


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
  c.model = model()
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


def model(path: str = "", *, preset: str = "tiny") -> ConfigDict:
  """Of a run, or as `model` of a stage that has another one than the run."""
  return ConfigDict(
    {
      # A .gguf file or a Hugging Face folder; "" makes fresh weights of a preset.
      "path": path,
      "preset": preset,
      "shape": ConfigDict(),  # fields of ModelConfig that differ from the preset
      "compute_dtype": "auto",  # float32 on CPU, bfloat16 elsewhere
    }
  )


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
  # Steps, or the most of them where `epochs` of the examples (R1: 2 to 3) decide, which
  # may come from a stage that has yet to make them; 0 epochs is off.
  s.num_steps = 100
  s.epochs = 0.0
  s.train_on = "completion"  # or "all" tokens, as in pre-training
  # Generated ("worked"), of a file ("jsonl"), or of a `stage` of the kind "rejection".
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


def pairs(labels: str = "pairwise") -> ConfigDict:
  """Answers of a policy that are judged: data for `preference` and `reward_model`.

  Args:
    labels: "pairwise" (which of two answers is preferred; here as R1's helpfulness),
      "pointwise" (is an answer safe, or right; here as R1's safety) or "process" (is
      each step right; here as Math-Shepherd, arXiv 2312.08935).
  """
  s = ConfigDict()
  s.kind = "pairs"
  s.init = ""  # whose answers: a stage before this one, or "" for config.model
  s.labels = labels
  drawn = grpo()
  s.rollout, s.reward = drawn.rollout, drawn.reward
  # Every problem is asked `group_size` times, `prompts` of them at a time. Pairs:
  # 2 or more; Math-Shepherd: 15.
  s.rollout.update({"prompts": 64, "group_size": 4, "max_tokens": 8192})
  for key in OVERLAP:
    del s.rollout[key]
  del s.reward["normalise"]
  # Points, where they decide; nothing of it where a judge does.
  s.reward.weights = ConfigDict({"accuracy": 1.0} if labels == "process" else {})
  # The server of the judge "server" is `reward.judge`. Warm, so that judgements of a
  # pair in one order are draws too; R1 does not say how it was asked.
  s.reward.judge.temperature = 0.7
  s.judge = ConfigDict(
    {
      # Who decides: a "server" (`reward.judge`), a "model" in this process, or the
      # points of the "reward", as `reward.weights` add them up.
      "kind": "server",
      # What of an answer is judged, and counts in lengths: "all", or the "answer"
      # behind </think>. R1: helpfulness the latter, safety all.
      "reads": "answer",
      # Of each pair in both orders, averaged (R1: 4); of an answer they must agree.
      "judgements": 4,
      # Of "model" alone: a file or folder, or a stage before this one, whose tokenizer
      # has a chat template; a longer prompt than prompt_length is no verdict.
      "model": ConfigDict(
        {
          "path": "",
          "stage": "",
          "prompts": 32,  # at a time
          "prompt_length": 16_384,
          "max_tokens": 1024,
          "temperature": 0.7,
        }
      ),
    }
  )
  s.choose = ConfigDict(
    {
      # Which two answers are compared: "random" ones; or by the points of the reward
      # "best_worst" (Llama 3), "right_wrong", or "shortest_longest" of the right ones
      # (arXiv 2412.21187). Answers to label are "random" ones.
      "kind": "random",
      "per_problem": 1,  # pairs, or answers, of a problem at most
      # Of mean scores, of points, or of tokens ("shortest_longest"), above which a pair
      # is kept; of pairs alone. R1: 1.
      "min_gap": 1.0,
      # Points that make an answer right, where points decide that.
      "threshold": config_dict.placeholder(float),
      # Pairs are left out until the longer answer is preferred as often as not (R1).
      "balance_lengths": True,
    }
  )
  # Of "process" alone: completions of what each step ends (8 in the paper), and whether
  # one right one makes a step right ("hard"), or their share is its label ("soft").
  s.steps = ConfigDict({"rollouts": 8, "labels": "hard"})
  changes = {
    "pairwise": {},
    "pointwise": {
      "rollout": {"group_size": 1},
      "judge": {"reads": "all", "judgements": 1},
      "choose": {"min_gap": None, "balance_lengths": False},
    },
    "process": {
      "rollout": {"group_size": 15},
      "judge": {"kind": "reward", "reads": "all", "judgements": 1},
      "choose": {
        "per_problem": 15,
        "min_gap": None,
        "threshold": 1.0,
        "balance_lengths": False,
      },
    },
  }
  s.update(changes[one_of(labels, changes, key="common.pairs")])
  return s


def preference() -> ConfigDict:
  """DPO, RPO or SimPO on pairs: a JSONL file (r1jax/data/judged.py), or a stage's."""
  s = ConfigDict()
  s.kind = "preference"
  s.init = ""
  s.num_steps = 100
  s.data = ConfigDict(
    {
      "path": "",
      "stage": "",  # of the kind "pairs", before this one: what it made, not a file
      "min_gap": 1.0,  # of judges' mean scores, where lines have those
      "on_bad_line": "error",
      "limit": config_dict.placeholder(int),
    }
  )
  # "dpo" uses beta (0.1 in the paper); "rpo" nll_coef as well, the weight of the chosen
  # answer's cross-entropy (1); "simpo" beta (2 to 2.5) and gamma (half of it).
  s.loss = ConfigDict(
    {
      "kind": "dpo",
      "beta": 0.1,
      "gamma": config_dict.placeholder(float),
      "nll_coef": config_dict.placeholder(float),
    }
  )
  s.optim = optimizer(1e-6)
  # A step is `microbatches` times `rows` rows; a pair lies in one of them, its prompt
  # once, so that its tokens must not be more than `row_length`.
  s.training = ConfigDict(
    {"rows": 8, "microbatches": 1, "row_length": 2048, "remat": "none"}
  )
  s.moe = mixture()
  s.lora = adapter()
  return s


def recipe(name: str) -> ConfigDict:
  """What makes a named algorithm, to update the settings of a stage of `grpo` with.

  `r1jax/objectives/recipes.py` has them, with the papers. Sizes in tokens are those of
  the papers too: `shaping.overlong_buffer` and `loss.length_constant` go with
  `rollout.max_tokens`.
  """
  return ConfigDict(recipes.settings(name))


def reward_model() -> ConfigDict:
  """A model that gives answers, or their steps, a score."""
  s = ConfigDict()
  s.kind = "reward_model"
  s.init = ""
  # What is learned, from lines that r1jax/data/judged.py describes: "pairwise" (which
  # of two answers is preferred), "pointwise" (is it safe, or right), "outcome" (the
  # same, after each of its tokens) or "process" (is each step right).
  s.objective = "pairwise"
  # "all" of an answer, or the "answer" behind </think>. R1: helpfulness reads the
  # latter, safety all.
  s.reads = "all"
  s.num_steps = 258  # R1: one epoch of 66,000 pairs
  s.data = ConfigDict(
    {
      "path": "",
      "stage": "",  # of the kind "pairs", before this one: what it made, not a file
      "min_gap": 1.0,  # R1: of two judged responses' mean scores, above which one wins
      "on_bad_line": "error",
      "limit": config_dict.placeholder(int),
      "held_out": 0.05,  # share of the prompts
      # Pairs are left out until the longer answer wins as often as it loses (R1
      # balances lengths too).
      "balance_lengths": True,
    }
  )
  s.optim = optimizer(6e-6)  # R1
  # A step is `batch` pairs or answers (R1: 256), packed into rows of which `rows` go
  # through the model at a time. Both answers of a pair lie in a row, their prompt once.
  s.training = ConfigDict(
    {"batch": 256, "rows": 8, "row_length": 8192, "remat": "full"}  # R1: 8,192
  )
  s.moe = ConfigDict({"balance_coef": 0.0})
  s.lora = adapter()
  s.eval = ConfigDict({"every": 20})  # steps; 0: before the first and after the last
  return s


def grpo() -> ConfigDict:
  """GRPO as R1-Zero used it. A step is one rollout and its updates.

  `s.update(recipe(NAME))` makes another algorithm of it.
  """
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
      # Rollouts after which a group that is unfinished is drawn anew, for its first
      # tokens are of old weights; 0: never.
      "max_age": 0,
      # 1: a rollout is started before the one before it is judged and trained on.
      "lag": 0,
      # What answers are drawn with, evaluations aside: weights in "int8" (one scale for
      # each output channel), caches in "bfloat16", "float8_e4m3fn" or "int8" (one for
      # each head and token); "" is the compute dtype. Smaller to hold and to read, but
      # not on CPU, see r1jax/models/quantized.py. Log-probs then differ from the
      # trainer's (policy/logp_gap_mean); `loss.correction` corrects for it.
      "weights": "",
      "cache": "",
    }
  )
  s.reward = ConfigDict(
    {
      # R1: the same weight for both; a part without weight is only logged. Beside
      # "accuracy", "format", "language" and "repetition" there are those of `models`,
      # and "majority": 1 where most answers to a problem are the same (TTRL).
      "weights": ConfigDict({"accuracy": 1.0, "format": 1.0}),
      # {category: {"weights": {...}}} of problems to which other weights apply. Those
      # with the verifier "none" need some without "accuracy".
      "categories": ConfigDict(),
      "normalise": "none",  # or "per_part"
      # Of the part "format": "r1_zero", "think" (and what follows it), "think_prefix"
      # (the same where the prompt ends in <think>) or "boxed"; not strict: a fraction
      # for every mark in its place.
      "format": ConfigDict({"kind": "r1_zero", "strict": True}),
      "language": "en",  # of the part "language"
      # Pieces of text in a row whose return the part "repetition" punishes.
      "repetition_ngram": 20,
      # Who judges problems with the verifier "judge": an OpenAI-compatible server.
      "judge": ConfigDict(
        {
          "url": "",  # such as "http://localhost:8000/v1"; "" is nobody
          "model": "",
          "key_variable": "",  # environment variable that holds the API key
          "temperature": 0.0,
          "max_tokens": 2048,
          "timeout_s": 60.0,
          "retries": 4,
          "backoff_s": 1.0,
          "concurrency": 8,
          "cache": "",  # a file of replies; "" forgets them with the run
          "price_in": 0.0,  # of a million tokens, for judge/cost
          "price_out": 0.0,
        }
      ),
      # Programs, of problems with the verifier "code".
      "code": ConfigDict(
        {
          # "bubblewrap", or "subprocess", which has gaps that it warns of; "auto" is
          # the first that works.
          "sandbox": "auto",
          "score": "fraction",  # of the tests that are passed; "all": 1 or 0
          "time_s": 4.0,  # of a test, by the clock
          "total_s": 8.0,  # of all tests of an answer; below timeout_s
          "memory_mb": 512,  # of a process; at most memory_limit_mb
          "output_kb": 1024,  # of a test
          "file_mb": 16,
          "processes": 8,  # and threads
        }
      ),
      # Name of a part -> `scalar_model`, which is asked about problems that weigh it.
      "models": ConfigDict(),
      "num_workers": 2,
      "timeout_s": 10.0,
      "batch_timeout_s": 300.0,
      "memory_limit_mb": 1024,
    }
  )
  # Points for the length of an answer, added to its reward; logged as reward/shaping.
  s.shaping = ConfigDict(
    {
      # Tokens before max_tokens over which 0 falls to -1 (DAPO: 4,096); 0 is off.
      "overlong_buffer": 0,
      # Points of a right and of a wrong answer of no length and of one of max_tokens,
      # along half a cosine, and of one cut off there (Yeo et al., arXiv 2502.03373:
      # (2, 1), (-10, 0) and -10); () both is off.
      "cosine_correct": (),
      "cosine_wrong": (),
      "cosine_exceeded": 0.0,
      "shortest_bonus": 0.0,  # of the shortest right answer of a group
      "outcome_gate": False,  # such points for right answers alone
    }
  )
  # Answers that max_tokens cut off: "keep", "mask" or "penalise" by so many points.
  s.truncated = ConfigDict({"kind": "keep", "penalty": 0.0})
  # Groups to train on: all ("none"), or with right and wrong answers ("mixed": DAPO's
  # dynamic sampling). Then a step draws again, max_rounds rollouts at most, until
  # `rollout.prompts` groups are there; what they cost is in filter/*.
  s.filter = ConfigDict({"kind": "none", "max_rounds": 10})
  # Which problems are asked: in a shuffled order ("none"), or the more often, the
  # closer a problem's share of right answers is to one half ("pass_rate").
  s.curriculum = ConfigDict(
    {
      "kind": "none",
      "decay": 0.5,  # weight of the share so far, when a problem is asked again
      # Least weight of a problem, before weights are made to add up to 1; one that is
      # right half of the time has 0.25.
      "floor": 0.01,
    }
  )
  s.advantage = ConfigDict(
    {
      # A name of r1jax/objectives/advantages.py: "grpo", "rloo", "remax" (one greedy
      # answer more to each prompt), "batch_std", "reinforce_pp_baseline"; token by
      # token "reinforce_pp", "gae" (with a critic, see `critic`) and "process" (with a
      # model of steps).
      "estimator": "grpo",
      "steps": "",  # of "process": the part of `reward.models` that scores steps
      # The deviation that divides: "population", "sample" or "none".
      "std": "population",
      "eps": 0.0,  # added to it
      "kl_coef": 0.0,  # points a nat: the KL in the reward, token by token
      # Rewards are carried back along tokens by gamma, of "reinforce_pp" and "gae", and
      # what a critic expected by gae_lambda.
      "gamma": 1.0,
      "gae_lambda": 1.0,
    }
  )
  s.loss = ConfigDict(
    {
      # Whose probability is compared with the old one: the "token"'s, the "sequence"'s
      # (GSPO) or the latter with the gradient of the former, "sequence_token".
      "ratio": "token",
      # "clip", "dual_clip", "cispo", "soft_gate" (SAPO) or "reinforce"; it reads those
      # of the next five that r1jax/objectives/policy.py says.
      "surrogate": "clip",
      "clip_low": 10.0,  # R1: ratios in [-9, 11], so no lower bound at all
      "clip_high": 10.0,
      "clip_dual": config_dict.placeholder(float),
      "gate_positive": config_dict.placeholder(float),
      "gate_negative": config_dict.placeholder(float),
      "kl_coef": 0.001,  # R1; the KL in the loss
      "kl_estimator": "k3",  # R1; or "k1", "k2", "unbiased"
      "entropy_coef": 0.0,  # of a bonus
      "reduction": "sequence_mean",  # or "token_mean" (DAPO), "constant" (Dr. GRPO)
      "length_constant": config_dict.placeholder(float),  # of "constant"
      # Importance weights of tokens of older or otherwise computed weights: "none",
      # "truncate" those above the cap to it, or "mask" their tokens. A weight is of a
      # "token", of the whole "sequence", or the "geometric" mean over it.
      "correction": "none",
      "correction_level": "token",
      "correction_cap": 2.0,
      # An answer with a token of less weight is not trained on; 0 is off.
      "correction_veto": 0.0,
    }
  )
  # Of the estimator "gae" alone: a decoder with a scalar head, which begins as the
  # policy and is as large. The most points that a value may move in a step; 0 is off.
  s.critic = ConfigDict({"clip": 0.2, "optim": optimizer(1e-5)})
  s.moe = mixture()
  # Tokens go through the experts that they went through when they were sampled, in the
  # update and in the reference's scores.
  s.moe.replay = False
  s.lora = adapter()
  s.reference = ConfigDict(
    {
      # R1: it becomes the policy every 400 updates, here 25 rollouts; 0: never.
      "refresh_every": 25,
      # Nats a token that the KL is steered to, by a factor on its coefficient (Ziegler
      # et al., arXiv 1909.08593); 0: the coefficient is fixed.
      "kl_target": 0.0,
      # Answers over which a KL of e.g. 10 % too much makes the coefficient 10 % larger.
      "kl_horizon": 10_000.0,
    }
  )
  s.optim = optimizer(3e-6)  # R1
  # Prompts are dealt at random, with all their answers, to `minibatches` of as many
  # answers each (R1: 16, of answers dealt one by one), which are packed into rows;
  # `rows` of them go through the model at a time. A prompt lies once in a row, before
  # its answers there: prompt_length + group_size * (max_tokens + 1) hold any group.
  # `epochs` go over all of them, each dealt anew.
  s.training = ConfigDict(
    {"rows": 8, "row_length": 33_280, "minibatches": 16, "epochs": 1, "remat": "full"}
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


def evaluation() -> ConfigDict:
  """Held-out accuracy of what a stage has made."""
  s = ConfigDict()
  s.kind = "evaluation"
  s.init = ""
  drawn = grpo()
  s.eval, s.reward = drawn.eval, drawn.reward
  s.rollout = ConfigDict({"prompt_length": drawn.rollout.prompt_length})
  del s.eval["every"], s.reward["normalise"], s.reward["models"]
  return s


def scalar_model(stage: str) -> ConfigDict:
  """A part of the reward, for `reward.models`: a `reward_model` stage before this one.

  R1: helpfulness by one that reads the answer alone, safety by one that reads all.
  """
  return ConfigDict(
    {
      "stage": stage,
      "rows": 8,  # that it reads at a time
      "row_length": 33_280,
      "aggregation": "min",  # of the scores of steps, or "product"
    }
  )


def average(*stages: str) -> ConfigDict:
  """The mean of what earlier stages have made (Llama 3, arXiv 2407.21783)."""
  s = ConfigDict()
  s.kind = "average"
  s.stages = stages
  s.weights = ()  # of each; () is the same for all
  return s


def expert(algorithm: str = "expert_iteration") -> ConfigDict:
  """Fine-tuning on own answers that are right, round after round.

  Args:
    algorithm: "expert_iteration" (Havrilla et al., arXiv 2403.04642), "rest_em" (arXiv
      2312.06585), or "return_conditioned", which learns from wrong answers too.
  """
  s = sft()
  s.kind = "expert"
  del s["train_on"], s["epochs"], s["examples"]
  drawn = grpo()
  s.decontaminate = drawn.decontaminate
  s.rollout, s.reward, s.eval = drawn.rollout, drawn.reward, drawn.eval
  # Every problem is asked `group_size` times in a round, `prompts` of them at a time.
  s.rollout.update({"prompts": 64, "group_size": 96, "max_tokens": 1024})
  s.eval.update({"max_tokens": 1024, "batch": 64})
  for key in OVERLAP:
    del s.rollout[key]
  del s.eval["every"]
  del s.reward["normalise"]
  # Of a round, which begins with the weights of `init`; `num_steps` is of all of them.
  s.round_steps = 500
  s.num_steps = 5 * 500
  # Rounds without a better accuracy on the set `dev` of `eval.sets` after which it ends
  # ("" is the only set). The best weights are what the stage leaves.
  s.patience = 1
  s.dev = ""
  # Whose answers a round draws: those of the "best" weights so far, or of the "last".
  s.asks = "best"
  # Answers that ended by themselves, with `threshold` or more of a part of the reward,
  # each text once, at most `per_problem` of a problem in a round (0: all). A round
  # trains on the "growing" set of all rounds, or on what the "round" itself has kept.
  s.keep = ConfigDict(
    {"set": "growing", "part": "accuracy", "threshold": 1.0, "per_problem": 0}
  )
  # Texts behind a question that tell whether a right or a wrong answer follows; with
  # them wrong answers are trained on too, and held-out problems ask for right ones.
  s.tags = ConfigDict({"good": "", "bad": ""})
  s.optim.total_steps = s.get_ref("round_steps")
  changes = {
    "expert_iteration": {},
    # Its limit is that of MATH's problems.
    "rest_em": {"asks": "last", "keep": {"set": "round", "per_problem": 10}},
    "return_conditioned": {"tags": {"good": " [GOOD]", "bad": " [BAD]"}},
  }
  s.update(changes[one_of(algorithm, changes, key="common.expert")])
  s.training.row_length = 2048
  return s


# R1: samples of its second fine-tuning by category, for `shares` of a stage of
# `rejection`; 804,745 in all.
R1_SAMPLES = {
  "math": 395_285,
  "code": 211_129,
  "stem": 10_124,
  "logic": 10_395,
  "general": 177_812,
}


def rejection(choice: str = "right") -> ConfigDict:
  """Answers of a policy that are kept, as examples for stages of `sft` and `distill`.

  Args:
    choice: "right" (R1's rejection sampling and cold start), "majority" (label-free
      self-improvement, arXiv 2210.11610) or "best" (Llama 3, arXiv 2407.21783).
  """
  s = ConfigDict()
  s.kind = "rejection"
  s.init = ""  # whose answers: those of a stage before this one, or of config.model
  s.data = ConfigDict()
  # Problems of which nothing may get into the set: name -> settings as of `data`; and
  # how many words in a row tell (R1: 10); 0 is off.
  s.held_out = ConfigDict()
  s.decontaminate = 10
  drawn = grpo()
  s.rollout, s.reward = drawn.rollout, drawn.reward
  for key in OVERLAP:
    del s.rollout[key]
  del s.reward["normalise"]
  # Every problem is asked `group_size` times, `prompts` of them at a time.
  s.rollout.update({"prompts": 64, "group_size": 16})
  # What a choice reads, others leave None.
  s.choose = ConfigDict(
    {
      # "right": answers with `least` or more of a `part` of the reward. "majority":
      # those with the answer that most of a problem's have, which must be a share of
      # `least`; no gold is read. "best": `keep.per_problem` with most of a `part`,
      # such as one of `reward.models`.
      "kind": choice,
      "part": config_dict.placeholder(str),
      "least": config_dict.placeholder(float),
    }
  )
  # Which of the chosen are left out. R1 leaves out chains of thought with mixed
  # languages, long paragraphs and code blocks, and publishes no bounds.
  s.keep = ConfigDict(
    {
      "truncated": False,  # True keeps answers that max_tokens cut off
      # Least scores of parts of the reward: {"format": 1.0, "language": 0.9,
      # "repetition": -0.1}, ...
      "least": ConfigDict(),
      # Of the chain of thought the words or characters of its longest paragraph, and
      # its fenced code blocks, at most; None is no bound.
      "paragraph_words": config_dict.placeholder(int),
      "paragraph_characters": config_dict.placeholder(int),
      "code_blocks": config_dict.placeholder(int),
      # Share of words of the whole answer that are not of `reward.language`, at most.
      "foreign_words": config_dict.placeholder(float),
      "per_problem": 0,  # at most; 0 keeps all
    }
  )
  # A model behind an address writes thought and summary anew, as DeepSeek-V3 did for
  # R1's cold start; what is not right any more is dropped. "" leaves them as they are.
  s.rewrite = ConfigDict(
    {
      "form": "<think>\n{thought}\n</think>\n\n{summary}",
      "endpoint": drawn.reward.judge.copy_and_resolve_references(),
    }
  )
  # Each answer in several forms of prompt, r1jax/data/formats.py; none as it is.
  s.formats = ConfigDict(
    {
      "names": (),
      # Of the few-shot ones: a file of lines with `question`, `thought`, `answer`,
      # behind which problems are then asked too, or "" for the first that are kept.
      "exemplars": "",
      "num_exemplars": 4,
      "cue": "Let's think step by step.",
      "answer_form": "The answer is {answer}.",
    }
  )
  # Other data: name -> what `also` makes.
  s.also = ConfigDict()
  # {category: the most examples}, as `R1_SAMPLES`, or {category: share of the set};
  # empty keeps all.
  s.shares = ConfigDict()
  changes = {
    "right": {"choose": {"part": "accuracy", "least": 1.0}},
    "majority": {
      "choose": {"least": 0.0},
      # The paper's 32 paths at 0.7.
      "rollout": {"group_size": 32, "temperature": 0.7, "max_tokens": 256},
      "formats": {"names": ("few_shot_thought", "few_shot_answer", "cue", "question")},
    },
    # The paper's 10 to 30 answers.
    "best": {"rollout": {"group_size": 16}, "keep": {"per_problem": 1}},
  }
  s.update(changes[one_of(choice, changes, key="common.rejection")])
  if choice == "majority":
    s.reward.weights = ConfigDict({"format": 1.0})  # problems need no gold
  return s


def also(examples: ConfigDict, *, category: str = "", count: int = 0) -> ConfigDict:
  """Other data in the set of a stage of `rejection`.

  Args:
    examples: settings as of `examples` of `sft`.
    category: "" is what the examples say, or the name.
    count: drawn from them; 0 takes all.
  """
  return ConfigDict({**examples, "category": category, "count": count})


def distill() -> ConfigDict:
  """A student learns the distributions of a teacher that shares its tokenizer."""
  s = sft()
  s.kind = "distill"
  del s["train_on"], s["epochs"], s.training["mtp_coef"]
  # A model's file or folder, or a stage before this one.
  s.teacher = ConfigDict({"path": "", "stage": ""})
  # Share of steps on answers that the student draws, the others being on `examples`.
  # It answers the problems of `data`, or the examples' prompts where that is empty.
  s.on_policy = 0.0
  s.data = ConfigDict()
  s.loss = ConfigDict(
    {
      # "forward" (covers what the teacher does), "reverse" (seeks what it does most),
      # "generalised" (GKD, arXiv 2306.13649: between them, by beta); or, where all
      # steps are on own answers, "policy_gradient", which estimates "reverse" from the
      # drawn tokens.
      "divergence": "forward",
      "beta": config_dict.placeholder(float),
      "temperature": 1.0,  # of both distributions
    }
  )
  s.rollout = expert().rollout
  s.rollout.update({"prompts": 32, "group_size": 4})
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


def add_stages(c: ConfigDict, stages: Mapping[str, ConfigDict]) -> None:
  """Makes them the stages of a run, in their order."""
  for name, settings in stages.items():
    c[name] = settings
  c.stages = tuple(stages)


def no_arg(arg: str | None, *, allowed: tuple[str, ...] = ()) -> None:
  """Refuses what follows a colon in --config=FILE:ARG, but for `allowed`."""
  if arg is not None and arg not in allowed:
    known = ", ".join(allowed) or "none"
    raise InputError(f"--config=FILE:{arg}: no such variant; there are: {known}")
