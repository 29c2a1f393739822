"""What a study claims, as its file holds it, checked against the settings of its parts before anything runs.

    claims:
      - {name: as good, part: local, against: full, metric: rougeLsum, direction: as good, margin: 0.01, maxlen: 8192}
      - {name: longer helps, part: full, against: 1024, metric: rougeLsum, direction: better, maxlen: 8192}

The words are those of `--claim` of eval/run.py: a part is claimed to be something beside another part, or beside itself
at another length.
"""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from eval.config.claim import length_or_name
from eval.config.options import Options
from eval.config.run import RunConfig
from eval.errors import UserError
from eval.records.schema import StudyClaim
from eval.records.windows import named
from eval.scoring.ladder import RUNGS, Rung
from eval.scoring.profiles import metric_columns, metric_name
from eval.studies.yaml_fields import Kind, fields_of
from tasks.readers.yaml_file import shown

DIRECTIONS = ("better", "worse", "as-good", "differs")
PERPLEXITY_METRIC = "perplexity"
# Of parts with a context ladder: the gains of a rung, or what two of them are at a length.
LADDER_METRICS: Mapping[str, tuple[Rung, bool]] = {
    **{f"ladder.{rung}": (rung, True) for rung in RUNGS},
    "ladder.nll": ("used", False),
    "ladder.score": ("credited", False),
}


def read_claims(
    content: Sequence[Any], settings: Mapping[str, Options], with_ladder: Collection[str] = ()
) -> list[StudyClaim]:
    """Return the claims of a study's file.

    Args:
        content: What stands under `claims`.
        settings: Those of each part that can be claimed about: runs of answers, and measurements of perplexity.
        with_ladder: Names of the parts that have a context ladder.

    Raises:
        UserError: An entry is wrong, or about what its parts will not have.
    """
    claims: list[StudyClaim] = []
    for number, one in enumerate(content, start=1):
        claim = _claim(f"claim {number}", one, settings, with_ladder)
        if any(claim.name == other.name for other in claims):
            raise UserError(f"two claims are called '{claim.name}'; give each a name of its own")
        claims.append(claim)
    return claims


def _claim(where: str, content: Any, settings: Mapping[str, Options], with_ladder: Collection[str]) -> StudyClaim:
    required: dict[str, Kind] = {
        "name": str,
        "part": str,
        "against": (str, int),
        "metric": str,
        "direction": str,
        "maxlen": int,
    }
    fields = fields_of(where, content, required, {"margin": float, "task": str, "template": str, "text": str})
    fields["name"] = " ".join(fields["name"].split())
    where = f"claim '{fields['name']}'"
    fields["direction"] = fields["direction"].replace(" ", "-")
    try:
        fields["against"] = length_or_name(fields["against"])
    except ArgumentTypeError as error:
        raise UserError(f"{where}: against: {error}") from None
    if fields["direction"] not in DIRECTIONS:
        known = ", ".join(one.replace("-", " ") for one in DIRECTIONS)
        raise UserError(f"{where}: direction is {shown(content['direction'])}; known: {known}")
    margin = fields.get("margin")
    if (margin is None) == (fields["direction"] == "as-good"):
        raise UserError(f"{where}: margin is {margin}; 'as good' has one, 0.01 for example, and nothing else has")
    if margin is not None and not 0 < margin < 1:
        raise UserError(f"{where}: margin is {margin}; it is a fraction, above 0 and below 1")
    claim = StudyClaim(**fields)
    _check_parts(where, claim, settings, with_ladder)
    return claim


def _check_parts(where: str, claim: StudyClaim, settings: Mapping[str, Options], with_ladder: Collection[str]) -> None:
    """Raise `UserError` for what the parts of a claim will not have."""
    other = claim.against_length
    lengths = {claim.part: [claim.maxlen]}
    lengths.setdefault(claim.part if other else claim.against, []).append(other or claim.maxlen)
    if len(lengths) == 1 and (other is None or other == claim.maxlen):
        raise UserError(f"{where}: it compares '{claim.part}' with itself; name another part, or another length")
    kinds = set()
    for name, of_part in lengths.items():
        if name not in settings:
            known = ", ".join(settings) or "none"
            raise UserError(f"{where}: '{name}' is no part with answers or perplexities; those that have: {known}")
        config: Any = settings[name]
        kinds.add(type(config))
        for length in of_part:
            if length not in config.maxlen:
                known = ", ".join(map(str, config.maxlen))
                raise UserError(f"{where}: maxlen of '{name}' does not have {length}; it has: {known}")
        if claim.task is not None and claim.task not in config.tasks:
            raise UserError(f"{where}: '{name}' has no task '{claim.task}'; it has: {', '.join(config.tasks)}")
        known_metrics = _metrics(config, claim.task) + (list(LADDER_METRICS) if name in with_ladder else [])
        if claim.metric not in known_metrics:
            known = ", ".join(known_metrics) or "none that all of its tasks share"
            raise UserError(f"{where}: '{name}' has no metric '{claim.metric}'; it has: {known}")
        _check_until(f"{where}: '{name}'", config)
        _check_places(f"{where}: '{name}'", claim, config)
        if claim.metric in LADDER_METRICS:
            _check_rung(f"{where}: '{name}'", claim, config)
    if len(kinds) > 1:
        raise UserError(f"{where}: '{claim.part}' and '{claim.against}' are parts of different scripts")


def _check_until(where: str, config: Any) -> None:
    """Raise `UserError` for a part that ends by what its answers show, after which tests of them claim nothing."""
    if isinstance(config, RunConfig) and config.stopping is not None and config.stopping.metric is not None:
        raise UserError(
            f"{where} ends as soon as its answers show enough (until: {config.until}), and a test after that claims "
            "nothing; leave until out, or give it a time alone"
        )


def _check_places(where: str, claim: StudyClaim, config: Any) -> None:
    """Raise `UserError` for a claim that several tasks or templates would have to share, or lengths of other tokens."""
    if not isinstance(config, RunConfig):
        if not claim.against_length:
            return  # all tasks together
        if config.of == "documents" and config.stride is None:
            raise UserError(
                f"{where} predicts other tokens at each length, whose perplexities do not compare; give it a stride, "
                "or of: references"
            )
        _check_one(where, "task", claim.task, list(config.tasks))
        return
    bases = config.template or ()
    templates = [named(base, window) for base in bases for window in config.window]
    if claim.template is not None and templates and claim.template not in templates:
        raise UserError(f"{where} has no template '{claim.template}'; it has: {', '.join(templates)}")
    if claim.metric in LADDER_METRICS:
        return  # all tasks and templates together
    _check_one(where, "task", claim.task, list(config.tasks))
    _check_one(where, "template", claim.template, templates or list(config.window))


def _check_one(where: str, what: str, chosen: str | None, known: Sequence[str]) -> None:
    if chosen is None and len(known) > 1:
        raise UserError(f"{where} has several {what}s ({', '.join(known)}); name one as {what} of the claim")


def _check_rung(where: str, claim: StudyClaim, config: RunConfig) -> None:
    """Raise `UserError` for a rung where no ladder has one."""
    smallest, length = config.maxlen[0], claim.against_length
    if length is None and claim.maxlen == smallest:
        raise UserError(
            f"{where} has no rung at {smallest}, its smallest length, over which rungs are gains; give a greater maxlen"
        )
    if length is not None and smallest not in (length, claim.maxlen):
        raise UserError(
            f"{where} has a ladder of gains over {smallest} tokens, and none of {claim.maxlen} over {length}; let one "
            f"of them be {smallest}"
        )
    profiles = {name: config.profile or one.profile for name, one in config.tasks.items()}
    if claim.task is None and len(set(profiles.values())) > 1:
        said = ", ".join(f"{name}: {profile}" for name, profile in profiles.items())
        raise UserError(f"{where} has tasks of several profiles ({said}); name one as task of the claim")


def _metrics(config: Any, task: str | None) -> list[str]:
    """Return the metrics that all tasks of a part have, or the one of a claim."""
    if not isinstance(config, RunConfig):
        return [PERPLEXITY_METRIC]
    profiles = [config.profile or one.profile for name, one in config.tasks.items() if task in (None, name)]
    first, *others = (metric_columns(profile) for profile in profiles)
    return [name for name in first if all(name in other for other in others)]


def say_claim(claim: StudyClaim) -> str:
    """Return what is claimed, in sentences."""
    is_plain = claim.metric == PERPLEXITY_METRIC or claim.metric in LADDER_METRICS
    metric = claim.metric if is_plain else metric_name(claim.metric)
    other = f"itself at {claim.against_length:,}" if claim.against_length else f"`{claim.against}`"
    is_what = {
        "better": f"is better than {other}",
        "worse": f"is worse than {other}",
        "as-good": f"is as good as {other}",
        "differs": f"differs from {other}",
    }[claim.direction]
    margin = "" if claim.margin is None else f", margin {_say_margin(claim.metric, claim.margin)}"
    where = "".join(f", {one}" for one in (claim.task, claim.template) if one)
    said = f"`{claim.part}` at {claim.maxlen:,} tokens {is_what} in {metric}{margin}{where}"
    return f"{said}. {claim.text.strip()}".strip()


def _say_margin(metric: str, margin: float) -> str:
    """Return a margin in the unit of what it is of."""
    if metric in LADDER_METRICS and LADDER_METRICS[metric][0] == "used":
        return f"{margin:g} nats a token"
    return f"{100 * margin:g}{'%' if metric == PERPLEXITY_METRIC else ''}"
