"""CSV cells that programs read as they are and spreadsheets don't run."""

FORMULA = (
    "=",
    "+",
    "-",
    "@",
    "\t",
    "\r",
    "\uff1d",
    "\uff0b",
    "\uff0d",
    "\uff20",
)  # the last four: their full-width forms


def escape_formula(value: str) -> str:
    """A text for a cell: what a spreadsheet would take for a formula gets an apostrophe in front; a number stays one.

    After OWASP's "CSV Injection". Names of classes and files come from anywhere.
    """
    if not value.startswith(FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
