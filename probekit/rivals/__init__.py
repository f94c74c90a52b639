"""Rival tracers on one interface: each ranks pairs from a checkpoint, the pairs and the queries."""


class RivalError(ValueError):
    """A tracer that cannot be run on what it was given."""
