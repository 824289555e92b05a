"""The flags that say how samples are drawn, for every command that draws some."""

import ast
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.errors import UserError
from experiments.ground.options import MOST_STEPS, Flags
from experiments.ground.readers import assignment, require_once

_GROUPS = ("guidance", "projection", "inversion")


class SamplingFlags:
    """--sampler, --steps, --guidance and their options; `apply` writes them into the config of a run.

    Args:
      flags: flags of the command.
      with_tasks: whether the command also has the flags for tasks, --projection and --inversion.
    """

    def __init__(self, flags: Flags, *, with_tasks: bool = False):
        self.sampler = flags.string(
            "sampler", None, "name such as heun or dpmpp_2m; a wrong name lists all; by default the config's"
        )
        self.steps = flags.integer("steps", None, "transitions of the time grid", lower=1, upper=MOST_STEPS)
        self.guidance = flags.string(
            "guidance", None, "the rule, such as classifier_free or apg; by default the config's"
        )
        self.scale = flags.number("guidance_scale", None, "scale of the guidance rule; 1 is none", lower=0, upper=1000)
        self.guide = flags.path("guide", None, "workdir of a worse network to guide away from (autoguidance)")
        self.guide_ema = flags.string(
            "guide_ema", None, "average of the guide's parameters; by default the one of its config"
        )
        self.parts = {"guidance": self.guidance}
        if with_tasks:
            self.parts["projection"] = flags.string(
                "projection", None, "method that uses the known part in a task, such as replacement or pigdm"
            )
            self.parts["inversion"] = flags.string("inversion", None, "method from a picture to noise: ddim or rk45")
        self.options = flags.repeated(
            "set",
            f"an option of the {' or '.join(self.parts)}, such as guidance.rescale=0.7",
            check=assignment,
            allowed="GROUP.NAME=VALUE",
        )

    def apply(self, sampling: ConfigDict) -> None:
        """Write the given flags into config.sampling, from which the parts are built.

        Raises:
          UserError: flags contradict each other, or an option belongs to no such group.
        """
        guidance = self._rule()
        with sampling.unlocked():
            for group, holder in self.parts.items():
                name = guidance if group == "guidance" else holder.value
                if name and (group not in sampling or sampling[group].name != name):
                    sampling[group] = ConfigDict({"name": name, **self._kept(group, name, sampling)})
            given = {"scale": self.scale, "guide": self.guide, "guide_ema": self.guide_ema}
            for field, holder in given.items():
                if holder.value is not None:
                    _assign(sampling.guidance, field, holder.value)
            self._set(sampling)
            if self.guide.value is not None and sampling.guidance.scale == 1.0:
                raise UserError(
                    "--guide does nothing at scale 1: give --guidance_scale=..., such as 2, or leave it out"
                )

    def of_model(self) -> dict[str, Any] | None:
        """The guidance rule and its options for a published model, which has no config; None where no rule is given.

        Raises:
          UserError: a guide, which only a run has, or an option without its rule.
        """
        for holder, name in ((self.guide, "guide"), (self.guide_ema, "guide_ema")):
            if holder.value is not None:
                raise UserError(f"--{name} is for a run (--workdir): a published model has no worse network")
        sampling = ConfigDict({} if self.guidance.value is None else {"guidance": {"name": self.guidance.value}})
        self._set(sampling)
        return sampling.guidance.to_dict() if "guidance" in sampling else None

    def _set(self, sampling: ConfigDict) -> None:
        """Write the options of --set."""
        require_once(self.options.value)
        for option in self.options.value:
            path, _, text = option.partition("=")
            group, _, field = path.partition(".")
            if group not in self.parts or not field or "." in field:
                known = ", ".join(f"{name}.OPTION" for name in self.parts)
                raise UserError(f"--set={option}: it sets {known}; other fields are set when a run is trained")
            if group not in sampling:
                raise UserError(f"--set={option}: no {group} is named; give --{group} too")
            _assign(sampling[group], field, _value(text))

    def _rule(self) -> str | None:
        """The name of the rule that the flags select."""
        name, implied = self.guidance.value, None if self.guide.value is None else "autoguidance"
        if name and implied and name != implied:
            raise UserError(f"--guide is for guidance {implied}, but --guidance is {name}: leave one of them out")
        return name or implied

    def _kept(self, group: str, name: str, sampling: ConfigDict) -> dict[str, Any]:
        """The fields that all guidance rules share, from the rule that the config names."""
        if group != "guidance" or name == "none":
            return {}
        return {field: sampling.guidance[field] for field in ("scale", "interval", "rescale")
                if field in sampling.guidance}  # fmt: skip


def _assign(group: ConfigDict, field: str, value: Any) -> None:
    with group.ignore_type():
        group[field] = value


def _value(text: str) -> Any:
    """A number, a tuple or a truth value in Python's notation; anything else is a text."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return value if isinstance(value, int | float | tuple | bool) else text
