"""Fields that have another name now: the one place where the config of an older run is translated.

sampling.guidance_scale, guidance_interval     sampling.guidance.scale, .interval
sampling.guide, guide_ema                      sampling.guidance of the rule autoguidance, .guide, .guide_ema
(nothing)                                      sampling.projection, sampling.inversion: what they are by default
"""

from ml_collections import ConfigDict

_OLD = ("guidance_scale", "guidance_interval", "guide", "guide_ema")


def with_new_names(config: ConfigDict) -> ConfigDict:
    """The config of a run as it is written today; one of today is returned as it is."""
    if "sampling" not in config or "guidance" in config.sampling or not isinstance(config.sampling, ConfigDict):
        return config
    with config.unlocked():
        old = {name: config.sampling[name] for name in _OLD if name in config.sampling}
        for name in old:
            del config.sampling[name]
        config.sampling.guidance = ConfigDict(
            {
                "name": "autoguidance" if old.get("guide") else "classifier_free",
                "scale": old.get("guidance_scale", 1.0),
                "interval": old.get("guidance_interval", ()),
                "rescale": 0.0,
                **({"guide": old["guide"], "guide_ema": old.get("guide_ema", "")} if old.get("guide") else {}),
            }
        )
        for group, name in (("projection", "replacement"), ("inversion", "ddim")):
            if group not in config.sampling:
                config.sampling[group] = ConfigDict({"name": name})
    return config
