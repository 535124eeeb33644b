r"""How text is cut into words before sub-words are learnt: regular expressions whose matches are the words.

    gpt2     a word with the space before it, runs of digits, runs of signs            (Radford et al. 2019)
    llama3   the same, with numbers cut into groups of 3 digits from the left          (Llama team 2024)
    digits   the same, with every digit a word of its own
    r2l      the same, with numbers cut into groups of 3 digits from the right, as people write 1,234,567
             (Singh and Strouse 2024, "Tokenization counts"): a group ends where 3k digits follow it

No merge crosses the border of a word, so the rule decides what a token can be. Tokens of digits that are grouped from
the right line up with the digits' weights, whatever the length of the number.
"""

from __future__ import annotations

from protea.errors import ConfigError, nearest

_LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBER| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

PRESPLITS: dict[str, str] = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": _LLAMA.replace("NUMBER", r"\p{N}{1,3}"),
    "digits": _LLAMA.replace("NUMBER", r"\p{N}"),
    "r2l": _LLAMA.replace("NUMBER", r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"),
}


def pattern(name: str) -> str:
    """The regular expression (Oniguruma's dialect) of a rule.

    Raises:
        ConfigError: no such rule, with the nearest names.
    """
    if name not in PRESPLITS:
        raise ConfigError(f"There is no rule {name!r} for cutting text into words.", nearest(name, PRESPLITS))
    return PRESPLITS[name]


def words(text: str, rule: str = "gpt2") -> list[str]:
    """The words of a text.

    >>> words("in 1234567 years", "llama3")
    ['in', ' ', '123', '456', '7', ' years']
    >>> words("in 1234567 years", "r2l")
    ['in', ' ', '1', '234', '567', ' years']
    """
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    return [word for word, _ in Split(Regex(pattern(rule)), "isolated").pre_tokenize_str(text)]
