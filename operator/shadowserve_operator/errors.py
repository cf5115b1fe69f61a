"""What can go wrong while reconciling, by what should be done about it."""


class OperatorError(Exception):
    """Anything that this package raises on purpose."""


class SettingsError(OperatorError):
    """The operator itself is set up wrongly; the message names the variable and the fix."""


class Conflict(OperatorError):
    """Somebody else owns a field, or changed the object meanwhile; look again soon."""


class Refused(OperatorError):
    """The API server refuses what was sent, and will again; the message is its own."""


class Forbidden(Refused):
    """Whoever asked has no right to; the message is the API server's own."""


class NotServed(Refused):
    """The API server knows no such kind, or no such namespace; the message is its own."""


class ApiUnavailable(OperatorError):
    """The API server could not be asked, or failed; try again."""


class ImpossibleCall(OperatorError):
    """A mistake of ours: something was about to be applied that the operator may never apply."""


class LeadershipLost(OperatorError):
    """Another operator may act now: this one has to end at once."""


class Unfinished(OperatorError):
    """What was begun has to be looked at once more a little later: others may not have noticed yet."""
