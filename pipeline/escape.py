"""Escaping of text from untrusted sources: CSV injection and control characters."""

# The last four are the full-width forms of = + - @.
FORMULA_PREFIXES = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def escape_formula(value: str) -> str:
    """Return the text with an apostrophe in front if a spreadsheet would run it as a formula.

    Class and file names come from untrusted sources. Numbers such as ``-1`` stay unchanged, and so
    does a text that is escaped already.

    Args:
        value: Text of one CSV cell.

    References:
        OWASP, "CSV Injection", https://owasp.org/www-community/attacks/CSV_Injection

    Example:
        >>> escape_formula("=1+1"), escape_formula("-1"), escape_formula("cat")
        ("'=1+1", '-1', 'cat')
    """
    if not value.startswith(FORMULA_PREFIXES):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def unescape_formula(value: str) -> str:
    """Return the text before :func:`escape_formula`.

    Args:
        value: Text of one CSV cell.

    Example:
        >>> unescape_formula("'=1+1"), unescape_formula("'quoted'")
        ('=1+1', "'quoted'")
    """
    text = value.removeprefix("'")
    return text if text != value and escape_formula(text) == value else value


def printable(text: str) -> str:
    r"""Return the text with all characters escaped that would control a terminal.

    Line breaks remain. The result can be encoded in UTF-8.

    Args:
        text: Text for a terminal or a page. File and class names in it come from untrusted sources.

    Example:
        >>> print(printable("a" + chr(27) + "[31mb"))
        a\x1b[31mb
    """
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or character == "\n"
        else character.encode("unicode_escape").decode()
        for character in text
    )
