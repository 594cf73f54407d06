"""The error a user can cause: it names the field and the fix, and prints as a single line."""


class UserError(Exception):
    """Something in the user's hands is wrong; `str()` is the whole message, without a traceback.

    field: the dotted key, option or path at fault, e.g. `adapter.layers`.
    problem: what is wrong and what to do, e.g. `layer 40 is beyond the model's 32; use 0 to 31`.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(" ".join(f"{field}: {problem}".split()))
        self.field = field
        self.problem = problem

    def __reduce__(self) -> tuple[type[Exception], tuple[str, str]]:
        """Survive the trip between Ray processes, which pickle what they raise."""
        return type(self), (self.field, self.problem)


class Damaged(UserError):
    """Something written earlier that is proven not to be what was written."""
