"""What a language model's answer says, without all that models put around it.

Models think aloud, greet, label, quote and explain. What is left becomes the words that a student is trained
with.
"""

import ast
import html
import json
import re
from contextlib import suppress

QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "„": "“", "‘": "’", "«": "»"}
QUOTES |= {"「": "」", "『": "』", "《": "》", "‹": "›", "‚": "‘", "”": "”", "’": "’"}
# Tags of thoughts: behind the last closing one is the answer. Some servers send the closing tag alone.
THOUGHTS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<analysis>", "</analysis>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|channel|>analysis", "<|channel|>final<|message|>"),
)
TOKENS = re.compile(r"<\|[a-z_]+\|>|</?s>|<(?:end|start)_of_turn>|\[/?INST\]")
TAGGED = re.compile(r"<(\w{1,20})>(.*)</\1>|\[(\w{1,20})\](.*)\[/\3\]|\\boxed\{(.*)\}", re.DOTALL)
INVISIBLE = "\u200b\u200e\u200f\u2060\ufeff"  # which `str.strip` leaves at the ends
FENCED = re.compile(r"(```|~~~|\"\"\")(?:\w*\n)?(.*?)\1", re.DOTALL)
GREETING = re.compile(
    r"(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok|got it|great|understood|alright|yes|"
    r"好的|当然|natürlich|gerne|bien sûr|claro|certo|конечно)[!.,。！，]+\s*",
    re.IGNORECASE,
)
# The words before a first colon that name what follows: "Here is the prompt:", "Final answer:", "提示词：".
LABEL = re.compile(
    r"[^\n:：]{0,60}?\b(?:prompts?|instructions?|description|answer|output|response|result|caption|"
    r"assistant|here(?:['’]s| is| are| it is| you go| you are)|as follows|anweisung|beschreibung|antwort|"
    r"consigne|réponse|voici|respuesta|instrucción|aquí está|risposta|ecco|resposta|aqui está|"
    r"промпт|ответ|описание|вот)\b"
    r"(?: ?\([^\n)]*\)| (?:for|that|to|of|in|is|would|you|the|a|an|pour|für|para|per|для)\b[^\n:：]{0,60})?"
    r"[ *_]*[:：]|"
    r"(?:edit|task|command)[ *_]*[:：]|"
    # Without a colon: "Prompt - ...", "prompt = ...", "assistant" alone, "The prompt would be "..."".
    r"(?:(?:final|edit(?:ing)?|image) )?(?:prompt|instruction)s?[ *_]*(?: [-–—]|=|[-=]>) |"
    r"(?:assistant|prompt|answer|output)[ *_]*\n|"
    r"(?:the |a |my )?(?:\w+ ){0,2}(?:prompt|instruction|description) (?:is|would be|could be|should be) "
    r"(?=[\"“«„「])|"
    r"[^\n:：]{0,40}(?:提示词|提示詞|提示|指令|描述|回答|答案|如下|プロンプト|説明|프롬프트|설명)[^\n:：]{0,20}[:：]",
    re.IGNORECASE,
)
HEADING = re.compile(r"#{1,6} [^\n]{1,60}\n+")
BULLET = re.compile(r"(?:[-*•>]|#{1,6}|\(?1[.)])\s+")
REMARK = re.compile(
    r"\s\((?:note|remark|注)\b[^()\n]*\)$|"
    r"\n\s*\n?(?:---|\W{0,3}(?:note|explanation|this (?:prompt|edit|description|instruction)|let me know|"
    r"i hope|hope this|feel free|if you|would you like|please let|注意|说明|备注|hinweis|remarque|nota)\b).*",
    re.IGNORECASE | re.DOTALL,
)
SEVERAL = re.compile(
    r"\b(?:option|alternative|version|variant|prompt)\s*(?:1|a|one)\b\s*[:.)]", re.IGNORECASE
)
KEYS = (
    *("prompt", "student_prompt", "edit_prompt", "editing_prompt", "instruction", "description", "text"),
    *("answer", "output", "response", "result", "caption", "content"),
)
MAX_DEPTH = 4  # of lists and objects around a text


def plain(text: str) -> str:
    """A model's text without its thoughts, its code fence and its quotation marks."""
    for begin, end in THOUGHTS:
        # Thoughts that never closed have no answer after them.
        text = text.rpartition(end)[2].partition(begin)[0]
    text = html.unescape(TOKENS.sub("", text)).strip().strip(INVISIBLE).strip()
    if fence := FENCED.fullmatch(text):
        text = fence[2].strip()
    inner = text[1:-1].strip()
    if len(text) > 1 and QUOTES.get(text[0]) == text[-1] and not {text[0], text[-1]} & set(inner):
        return inner
    return text


def read_description(text: str) -> str:
    """The description in a model's answer: what is left when nothing more can be taken off around it."""
    before = None
    while text != before:
        before, text = text, _unwrap_once(text)
    return text


def _unwrap_once(text: str) -> str:
    text = REMARK.sub("", plain(text)).replace("**", "").replace("__", "")
    if tagged := TAGGED.fullmatch(text):
        return tagged[2] or tagged[4] or tagged[5] or ""
    if text[:1] in ("{", "["):
        return _from_json(text)
    start = text.lstrip("*_ ")
    for pattern in (GREETING, LABEL, HEADING, BULLET):
        if found := pattern.match(start):
            rest = start[found.end() :].strip()
            # A bullet before one line is an ornament; before several it is a list of alternatives.
            if rest and not (pattern is BULLET and "\n" in rest):
                return rest
    if len(text) > 2 and text[-1] in ".。" and QUOTES.get(text[0]) == text[-2]:
        return text[:-1]
    if len(text) > 2 and text[0] == text[-1] and text[0] in "*_":
        return text[1:-1]
    return text


def _from_json(text: str) -> str:
    """The one text in a JSON value, or the one under a known key; the value as it is if there is none."""
    value: object = None
    with suppress(ValueError, RecursionError):
        value, _ = json.JSONDecoder().raw_decode(text)
    if value is None:  # models write the dictionaries of Python too
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            value = ast.literal_eval(text)
    for _ in range(MAX_DEPTH):
        if isinstance(value, dict):
            filled = {str(key).lower(): item for key, item in value.items() if item not in (None, "", [], {})}
            known = [filled[key] for key in KEYS if key in filled]
            value = known[:1] or list(filled.values())
        if not isinstance(value, list) or len(value) != 1:
            break
        value = value[0]
    return value if isinstance(value, str) else text


def offers_several(text: str) -> bool:
    """Whether an answer is a choice of several."""
    return bool(SEVERAL.search(text))
