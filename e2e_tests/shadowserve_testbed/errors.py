"""What can go wrong with a test bed."""


class TestbedError(Exception):
    """The test bed cannot do that; the message says why and what to do."""

    __test__ = False  # not a test class, whatever its name says
