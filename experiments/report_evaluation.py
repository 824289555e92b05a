"""The part of the report that shows the metrics: what each number means, its value, its 95% interval."""

import html
from collections.abc import Mapping
from typing import Any

from experiments.report_charts import format_number

Group = dict[str, int | float]

_ABOUT = {
    "class_accuracy": (
        "Class accuracy",
        "A classifier trained on real images alone looks at each sample: does it see the class that was asked for? "
        "Its accuracy on real images that it has not seen is what perfect samples would score. It says nothing about "
        "variety.",
    ),
    "nearest_neighbours": (
        "Distance to the training images",
        "How far each sample lies from its nearest training image, against the same distance for real images that were "
        "held out. A model that has learned resembles the held-out images; one that copies lies far closer.",
    ),
    "fid": (
        "FID",
        "The Fréchet distance of samples and real images by Inception's features. Comparable only with the same "
        "reference, resizer and number of samples.",
    ),
    "sfid": ("sFID", "The same with features that see the layout."),
    "kid": ("KID", "The unbiased kernel distance by Inception's features: 0 on average for perfect samples."),
    "inception_score": ("Inception Score", "Samples that are each of one clear class, and together of many."),
    "precision_recall": (
        "Precision and recall",
        "By Inception's features: samples that look real; reals that it covers.",
    ),
    "density_coverage": ("Density and coverage", "By Inception's features; the same, without the pull of outliers."),
    "fd_dinov2": (
        "FD-DINOv2",
        "The Fréchet distance by DINOv2's features, which see more than the classes that Inception knows.",
    ),
    "cmmd": ("CMMD", "1000 times the squared mean discrepancy of CLIP's embeddings; smaller is better."),
    "clip_score": ("CLIP score", "How well images fit the text of their class, by CLIP: 100 times the cosine."),
    "proxy_fd": (
        "Proxy Fréchet distance",
        "The Fréchet distance of samples and training images by the features of a small classifier that was trained on "
        "this data. It ranks models on this data; it is no FID.",
    ),
    "proxy_kd": (
        "Proxy kernel distance",
        "The unbiased kernel distance by the features of a small classifier that was trained on this data; no KID.",
    ),
    "proxy_precision_recall": (
        "Proxy precision and recall",
        "By the features of a small classifier: samples that look real; reals that the samples cover.",
    ),
    "proxy_density_coverage": (
        "Proxy density and coverage",
        "By the features of a small classifier; near 1 for perfect samples.",
    ),
    "bits_per_dim": (
        "Bits per dimension",
        "An upper bound on the code length of held-out images under the model: the VDM's, in continuous time; of "
        "models of tokens that of their objective.",
    ),
    "perplexity": (
        "Perplexity",
        "Of held-out text, an upper bound: the exponential of the model's bound on -log P, per token.",
    ),
}
# How a number is called and shown: percent, count, or number. Names that are not here are shown as they are.
_NAMES = {
    "accuracy": ("Samples of the asked-for class", "percent"),
    "classifier_test_accuracy": ("The same classifier on held-out real images", "percent"),
    "median_distance": ("Median distance of samples", "number"),
    "held_out_median_distance": ("Median distance of held-out images", "number"),
    "distance_ratio": ("Ratio of the two (1 resembles held-out images)", "number"),
    "held_out_1pct_distance": ("Distance that 1% of held-out images fall short of", "number"),
    "fraction_closer": ("Samples closer than that (1% is expected)", "percent"),
    "exact_copies": ("Samples equal to a training image in every pixel", "count"),
    "held_out_exact_copies": ("Held-out images equal to a training image", "count"),
    "num_samples": ("samples", "count"),
    "num_train": ("training images", "count"),
    "num_held_out": ("held-out images", "count"),
    "num_classifier_train": ("real images for the classifier to learn from", "count"),
    "num_classifier_test": ("to test it on", "count"),
    "num_real": ("real images", "count"),
    "num_images": ("held-out images", "count"),
    "proxy_fd": ("Distance of the samples", "number"),
    "proxy_kd": ("Distance of the samples", "number"),
    "fid": ("Distance of the samples", "number"),
    "fd_dinov2": ("Distance of the samples", "number"),
    "cmmd": ("Distance of the samples", "number"),
    "clip_score": ("Score of the samples", "number"),
    "sfid": ("Distance of the samples", "number"),
    "kid": ("Distance of the samples", "number"),
    "held_out": ("The same of held-out real images", "number"),
    "bits_per_dim": ("Bits per dimension", "number"),
    "perplexity": ("Perplexity", "number"),
    "bits_per_token": ("Bits per token", "number"),
    "num_sequences": ("held-out sequences", "count"),
    "bins": ("Levels of the data", "count"),
    "network_evaluations": ("Network evaluations per image", "count"),
    "precision": ("Precision", "percent"),
    "recall": ("Recall", "percent"),
    "coverage": ("Coverage", "percent"),
}


def read_groups(content: Mapping[str, Any]) -> tuple[dict[str, Group], dict[str, Any]]:
    """The numbers of an evaluation by metric, and the settings they were obtained with.

    Takes {metric: {name: number}}, {"metrics": {metric: {...}}} and {"metric/name": number}; other plain values at the
    top, and those under "settings", are settings.
    """
    groups: dict[str, Group] = {}
    settings: dict[str, Any] = {}
    for key, value in content.items():
        if key == "settings" and isinstance(value, dict):
            settings |= value
        elif key == "metrics" and isinstance(value, dict):
            inner, more = read_groups(value)
            groups |= inner
            settings |= more
        elif isinstance(value, dict):
            numbers = {str(name): number for name, number in value.items() if _is_number(number)}
            if numbers:
                groups.setdefault(key, {}).update(numbers)
        elif "/" in key and _is_number(value):
            group, _, name = key.rpartition("/")
            groups.setdefault(group, {})[name] = value
        else:
            settings[key] = value
    return groups, settings


def headline(groups: Mapping[str, Group]) -> list[tuple[str, str, str]]:
    """Cards (label, value, note) of the metrics that have one number to remember."""
    cards = []
    accuracy = groups.get("class_accuracy", {})
    if "accuracy" in accuracy:
        real = accuracy.get("classifier_test_accuracy")
        note = f"{_percent(real)} on real images" if real is not None else ""
        cards.append(("Class accuracy", _percent(accuracy["accuracy"]), note))
    proxy = groups.get("proxy_fd", {})
    if "proxy_fd" in proxy:
        note = f"{format_number(proxy['held_out'])} for held-out images" if "held_out" in proxy else ""
        cards.append(("Proxy Fréchet distance", format_number(proxy["proxy_fd"]), note))
    distance = groups.get("nearest_neighbours", {})
    if "distance_ratio" in distance:
        copies = distance.get("exact_copies")
        note = "" if copies is None else "no exact copies" if copies == 0 else f"{copies:,} exact copies"
        cards.append(
            (
                "Distance to training set",
                f"{distance['distance_ratio']:.2f}×",
                f"of held-out images; {note}".rstrip("; "),
            )
        )
    return cards


def evaluation_section(groups: Mapping[str, Group], settings: Mapping[str, Any]) -> str:
    """All metrics as tables, or empty text."""
    if not groups:
        return ""
    drawn = "".join(
        f"<span>{html.escape(name.removeprefix('num_').replace('_', ' '))} <b>{html.escape(_setting(value))}</b></span>"
        for name, value in _flat(settings).items()
        if value is not None
    )
    note = f'<p class="settings">{drawn}</p>' if drawn else ""
    return note + "".join(_metric(name, group) for name, group in groups.items())


def _metric(name: str, group: Group) -> str:
    title, about = _ABOUT.get(name, (name.replace("_", " "), ""))
    classes = {key.removeprefix("class_"): v for key, v in group.items() if key[:6] == "class_" and key[6:].isdigit()}
    bounds = {f"{key}_{end}" for key in group if _interval(key, group) for end in ("low", "high")}
    counts = [key for key in group if key.startswith("num_")]
    plain = [key for key in group if key not in bounds | set(counts) and key.removeprefix("class_") not in classes]
    head = '<th>95% interval</th><th class="scale"><span>0</span><span>100%</span></th>' if bounds else ""
    rows = "".join(_row(key, group, with_interval=bool(bounds)) for key in plain)
    narrow = "" if bounds else ' class="narrow"'
    paragraph = f'<p class="about">{html.escape(about)}</p>' if about else ""
    return (
        f'<div class="metric"><h3>{html.escape(title)}</h3>{paragraph}<div class="scroll"><table{narrow}><thead><tr>'
        f'<th>Measure</th><th class="number">Value</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        f"{_classes(classes)}{_counts(counts, group)}</div>"
    )


def _counts(keys: list[str], group: Group) -> str:
    """What the numbers rest on, as one sentence."""
    parts = [f"{format_number(group[key])} {_NAMES.get(key, (key[4:].replace('_', ' '), ''))[0]}" for key in keys]
    return f'<p class="about counts">From {html.escape(", ".join(parts))}.</p>' if parts else ""


def _interval(key: str, group: Group) -> tuple[float, float] | None:
    low, high = group.get(f"{key}_low"), group.get(f"{key}_high")
    return None if low is None or high is None else (low, high)


def _row(key: str, group: Group, *, with_interval: bool) -> str:
    label, kind = _NAMES.get(key, (key.replace("_", " "), "number"))
    value, interval = group[key], _interval(key, group)
    cells = f'<th>{html.escape(label)}</th><td class="number">{_formatted(value, kind)}</td>'
    if with_interval:
        text, drawing = "", ""
        if interval:
            text = f"{_formatted(interval[0], kind)} to {_formatted(interval[1], kind)}"
            drawing = _bar(value, *interval) if kind == "percent" else ""
        cells += f'<td class="number between">{text}</td><td class="range">{drawing}</td>'
    return f"<tr>{cells}</tr>"


def _bar(value: float, low: float, high: float) -> str:
    """The interval on a line from 0 to 100%."""
    left, width = 100 * low, 100 * (high - low)
    span = f'<i style="left:{left:.2f}%;width:{width:.2f}%"></i>'
    return f'<div class="interval" aria-hidden="true">{span}<b style="left:{100 * value:.2f}%"></b></div>'


def _classes(classes: Mapping[str, int | float]) -> str:
    """The accuracy by class, in the order of the classes."""
    cells = [
        f"<div>{name} <strong>{100 * classes[name]:.0f}%</strong>"
        f'<span><i style="width:{100 * classes[name]:.1f}%"></i></span></div>'
        for name in sorted(classes, key=int)
    ]
    return f'<div class="classes" aria-label="accuracy by class">{"".join(cells)}</div>' if cells else ""


def _formatted(value: int | float, kind: str) -> str:
    return _percent(value) if kind == "percent" else format_number(value)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of each feature space, once; a metric that could not be had, with the reason."""
    flat = {name: value for name, value in settings.items() if name not in ("feature_spaces", "unavailable")}
    for space in settings.get("feature_spaces", {}).values():
        flat |= {name: str(value)[:16] if isinstance(value, str) else value for name, value in space.items()}
    return flat | {f"no {name}": reason.split(":")[0] for name, reason in settings.get("unavailable", {}).items()}


def _setting(value: Any) -> str:
    if isinstance(value, Mapping) and "name" in value:  # what a registry builds, as one would call it
        options = ", ".join(f"{key}={_setting(option)}" for key, option in value.items() if key != "name")
        return f"{value['name']}({options})" if options else str(value["name"])
    return format_number(value) if _is_number(value) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
