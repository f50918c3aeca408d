"""Guards running programs: sees each of their collectives, checks it, and compares it with the other ranks'."""

from collective_rules.guarding.guard import Guard, guard
from collective_rules.guarding.settings import GuardSettings

__all__ = ["Guard", "GuardSettings", "guard"]
