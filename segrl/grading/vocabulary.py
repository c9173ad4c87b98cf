"""The names in answers: functions, words and characters, and the commands that are read as another command."""

from __future__ import annotations


def names(text: str) -> frozenset[str]:
    return frozenset(text.split())


FUNCTIONS = names(
    "sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh ln log lg exp sqrt max min gcd lcm"
)
KNOWN_CALLS = FUNCTIONS - {"sqrt"} | {"floor", "ceil"}
UNREADABLE = names(
    "Gamma sum prod int iint oint lim ldots cdots dots vdots begin end choose bmod cases substack underbrace sup inf"
)
ACCENTS = names("vec overline bar hat dot ddot tilde widehat widetilde overrightarrow mathring")
PARAMETERS = names("k n m l N K M t z s")  # the letters that count the solutions of a family

CONNECTORS = names("and or")
CLAUSES = names("where for with when if given such")
ORDINALS = names("th st nd rd")
PER_CENT = names("percent pct percentage")
SHORT_WORDS = CONNECTORS | names(
    "is no if of to the not all odd yes for any one two six ten red day sum per pct are new top old both"
)
FILLERS = names(
    "the final answer answers is are so thus therefore hence solution solutions value values result equals of we get"
    " have maximum minimum area total probability option options choice that both and number sum distance length about"
    " approximately roughly around"
)
_NUMERALS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen twenty"
)
NUMBERS = {word: value for value, word in enumerate(_NUMERALS.split())}
CURRENCIES = {"€": "euro", "£": "poundsterling", "¥": "yen", "₹": "rupee"}
MONEY = frozenset(CURRENCIES.values()) | {"dollar"}

_SYMBOLS = {
    "−": "-", "–": "-", "—": "-", "×": "\\times ", "·": "\\cdot ", "⋅": "\\cdot ", "∙": "\\cdot ", "÷": "/", "∕": "/",
    "≤": "\\le ", "⩽": "\\le ", "≥": "\\ge ", "⩾": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "≡": "\\equiv ",
    "∞": "\\infty ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ", "∅": "\\emptyset ", "ø": "\\emptyset ",
    "∖": "\\setminus ", "→": "\\to ", "±": "\\pm ", "∓": "\\mp ", "°": "^{\\circ}", "º": "^{\\circ}",
    "∘": "\\circ ", "′": "'", "’": "'", "√": "\\sqrt ", "∠": " ", "ℝ": "\\R ", "ℤ": "\\Z ", "ℕ": "\\N ",
    "，": ",", "；": ";", "：": ":",
    "（": "(", "）": ")", "。": ".", "％": "\\%", "∣": "|", "⌊": "\\lfloor ", "⌋": "\\rfloor ", "⌈": "\\lceil ",
    "⌉": "\\rceil ", "⟨": "\\langle ", "⟩": "\\rangle ", "ϕ": "\\phi ", "ℓ": "\\ell ", "\u00a0": " ", "\u2009": " ",
    "\u202f": " ",
}  # fmt: skip
_GREEK = {
    chr(code): f"\\{name} "
    for first, letters in (
        (0x3B1, "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho . sigma tau"
                " upsilon phi chi psi omega"),
        (0x391, "Alpha Beta Gamma Delta Epsilon Zeta Eta Theta Iota Kappa Lambda Mu Nu Xi Omicron Pi Rho . Sigma Tau"
                " Upsilon Phi Chi Psi Omega"),
    )
    for code, name in enumerate(letters.split(" "), first)
    if name != "."
}  # fmt: skip
CHARACTERS = str.maketrans(_SYMBOLS | _GREEK)
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉ₙₖ", "0123456789nk")

# A command, and the command, or the text, that it is read as.
SYNONYMS = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom",
    "leqslant": "le", "leq": "le", "lt": "<", "gt": ">", "geqslant": "ge", "geq": "ge", "neq": "ne", "not=": "ne",
    "varnothing": "emptyset", "ast": "*", "rightarrow": "to", "longrightarrow": "to",
    "lvert": "|", "rvert": "|", "vert": "|", "mid": "|", "lbrace": "\\{", "rbrace": "\\}", "lbrack": "[", "rbrack": "]",
    "div": "/", "colon": ":", "sim": "approx", "simeq": "approx", "iff": "approx", "infin": "infty", "prime": "'",
    "varphi": "phi", "varepsilon": "epsilon", "degree": "^{\\circ}", "textdegree": "^{\\circ}", "percent": "\\%",
    "land": "\\w{and}", "wedge": "\\w{and}", "lor": "\\w{or}", "vee": "\\w{or}",
    "backslash": "setminus", "smallsetminus": "setminus", "tg": "tan", "ctg": "cot", "arctg": "arctan", "cosec": "csc",
    "euro": "\\w{euro}", "pounds": "\\w{poundsterling}", "dollar": "\\w{dollar}",
}  # fmt: skip
