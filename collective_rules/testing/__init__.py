"""What a test of collectives needs: real gloo ranks in one process."""

from collective_rules.testing.world import Outcome, World, WorldTimeout, close_worlds, world

__all__ = ["Outcome", "World", "WorldTimeout", "close_worlds", "world"]
