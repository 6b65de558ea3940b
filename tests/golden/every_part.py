"""All parts whose outcomes golden.json holds."""

from golden import attack_parts, engine_parts, network_parts, other_parts
from golden.parts import Part


def every_part() -> list[Part]:
    """Return the parts in the order of golden.json."""
    return [*engine_parts.parts(), *attack_parts.parts(), *network_parts.parts(), *other_parts.parts()]
