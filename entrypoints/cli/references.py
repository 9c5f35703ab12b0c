"""Model references as people paste them: the address of a model's page on the hub means its name."""

import re

_PAGE = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<name>[^/\s?#@]+/[^/\s?#@]+)"
    r"(?:/(?:tree|blob|resolve|commit)/(?P<revision>[^/\s?#]+))?(?:[/?#]\S*)?",
    re.IGNORECASE,
)


def model_reference(text: str) -> str:
    """Return ``ORG/NAME`` or ``ORG/NAME@REVISION`` for the address of a model's page, any other text unchanged."""
    page = _PAGE.fullmatch(text.strip())
    if page is None:
        return text
    return page["name"] + (f"@{page['revision']}" if page["revision"] else "")
