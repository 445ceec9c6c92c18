"""Nine algorithms from one base model, each with the same number of answers.

    bash launch/compare.sh runs/comparison

runs three seeds of this config, each in a folder of its own, and draws the figure with
`python -m r1jax.compare`. Base and problems are those of the quick start; one stage for
each algorithm begins with that base and draws ANSWERS answers. An algorithm is its
recipe (`r1jax/objectives/recipes.py`) with what is said below. Policies have the quick
start's learning rate, PPO's critic and expert iteration their own; nothing was tuned.

Held-out accuracy is that of answers drawn as in training: greedy ones jump from the
base's short form to the worked one within a few steps. `:small` ends within minutes and
shows nothing, for tests.
"""

from configs import common, quickstart

ANSWERS = 16_384  # 32 rollouts of the quick start
NUM_EVALUATIONS = 16  # behind the first
ROUNDS = 4  # of expert iteration

# Where an algorithm differs from its recipe and the quick start.
RECIPES = {
  "grpo": {},
  # The longest answer allowed, as in the paper's code.
  "dr_grpo": {"loss": {"length_constant": 48.0}},
  # As published a fifth of the longest answer. Dropped groups count as drawn: the last
  # steps lie behind ANSWERS.
  "dapo": {"shaping": {"overlong_buffer": 10}},
  "gspo": {},
  "cispo": {},
  # Without a ratio an answer is learnt from once, by the weights that drew it. Updates
  # are as many and as large as the others': two of a rollout twice as large.
  "rloo": {"rollout": {"prompts": 16}, "training": {"minibatches": 1}},
  "reinforce_pp": {},
  # The critic's head begins at 0 and has no more updates than the policy.
  "ppo": {"critic": {"optim": {"learning_rate": 1e-3}}},
}


def get_config(arg=None):
  common.no_arg(arg, allowed=("small",))
  c = quickstart.get_config()
  del c["zero"]
  c.stages = ("base", *RECIPES, "expert_iteration")
  for name in RECIPES:
    c[name] = by_recipe(name)
  c.expert_iteration = expert_iteration()
  if arg == "small":
    shrink(c)
  return c


def by_recipe(name):
  s = quickstart.get_config().zero
  s.update(common.recipe(name))
  s.update(RECIPES[name])
  # DAPO's recipe rewards accuracy alone; here all are rewarded alike.
  s.reward.weights.update({"accuracy": 1.0, "format": 1.0})
  s.reference.refresh_every = 0  # it stays the base
  s.num_steps = ANSWERS // (s.rollout.prompts * s.rollout.group_size)
  s.eval.every = s.num_steps // NUM_EVALUATIONS
  s.eval.temperature = 1.0
  return s


def expert_iteration():
  like = by_recipe("grpo")
  s = common.expert()
  s.init = like.init
  s.decontaminate = like.decontaminate
  # As many problems as the others meet, in every round.
  s.data = quickstart.chains("train", size=ANSWERS // like.rollout.group_size)
  for section in ("rollout", "eval"):
    s[section].update({key: like[section][key] for key in s[section]})
  s.rollout.group_size //= ROUNDS
  s.rollout.prompts *= ROUNDS
  # No round is chosen by held-out answers, which nobody has counted.
  s.asks = "last"
  s.patience = ROUNDS
  # Supervised steps of as many tokens as the base's, the last a tenth of the first.
  s.round_steps = 120
  s.num_steps = ROUNDS * s.round_steps
  s.optim.learning_rate = 1e-3
  s.training.row_length = 128
  return s


def shrink(c):
  """64 answers, of a model that gives a right one now and then."""
  c.model.shape.update({"depth": 1, "width": 32, "heads": 2, "kv_heads": 1, "ffw": 32})
  c.base.num_steps = 300
  c.base.optim.learning_rate = 1e-2
  for name in c.stages[1:]:
    s = c[name]
    s.data.size = 16
    s.rollout.slots = s.eval.slots = 16
    s.eval.sets.heldout.size = 16
  for name in RECIPES:
    s = c[name]
    s.rollout.update({"prompts": s.rollout.prompts // 8, "group_size": 4})
    s.num_steps //= 8
    s.eval.every = s.num_steps // 2
    s.filter.max_rounds = 2
  s = c.expert_iteration
  s.rollout.update({"prompts": 8, "group_size": 2})
  s.round_steps = 3
  s.num_steps = 2 * s.round_steps
