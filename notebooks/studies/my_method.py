"""A training method of your own: a template that runs as it is.

Name it in a study file, train and compare it as any other method::

    zoo: true
    methods: [pretrained, adv, mine]
    own_methods:
      mine:
        objective: notebooks/studies/my_method.py:MyMethod
        title: Mine
        adversarial: true
        options: {power: 1.0}

`make audit STUDY=<your file>`, with `zoo: true` in it, trains all of them, and a page compares each
with Adv, or with the method that its `base` names. What else a recipe may say is in
`advlib.recipes.Recipe`: `mix`, `validation`, `helper` and so on. A method that builds on TRADES
says `base: trades, mix: true, forwards: 1`, begins with `trades_parts(step)`, and has `trades`
among the study's methods.

This one weighs classes by how often they were wrong under attack in the epoch before. So it differs
from Adv from the second epoch on.
"""

from advlib.objectives.base import cross_entropy
from advlib.objectives.state import ClassMethod, Tally


class MyMethod(ClassMethod):
    """An objective with a state. Without one a function does: see `advlib.objectives.base`."""

    def set_up(self, recipe, images):
        """Before training: self.options, self.threat and self.num_classes are there."""
        self.power = self.options["power"]  # read here, so that one that is missing is said at once
        self.per_class("weight", 1.0)  # a buffer of K numbers: saved with the checkpoint
        self.errors = Tally(self.num_classes)  # sums by class, over all processes

    def forward(self, step):
        """A step: the loss, and which predictions were wrong."""
        x_adv, _ = step.attack()  # or attack(objective, radius=…, step_size=…, start=…)
        # Once per step, with all batches of images; what `step.scores` gives trains nothing.
        (logits,) = step.logits(x_adv)
        wrong = step.wrong(logits)
        self.errors.add(step.y, wrong)
        return (self.weight[step.y] * cross_entropy(logits, step.y)).mean(), wrong

    def look_back(self, validation):
        """After each epoch: new weights. `validation()` gives steps of held-out images."""
        error = self.errors.means().nan_to_num(0.0)
        weight = (1 + error) ** self.power
        self.weight.copy_(weight / weight.mean())
