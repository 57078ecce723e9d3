"""How language models decline, in the languages that they are asked in or fall back to.

What declines is not an answer: as a student prompt, an excuse would be trained. Words that the description
of an edit may hold as well count only at the beginning, or after "I".
"""

import re

REFUSALS = {
    "English, I or we": (
        r"\b(?:i|we)(?:'m| am|'re| are|'d| would)? (?:\w+ )?(?:sorry|afraid|unable|not able|not comfortable|"
        r"not allowed|not permitted|cannot|can't|can not|couldn't|could not|won't|will not|don't|do not|"
        r"(?:must|have to) (?:\w+ )?decline|decline|refuse|apologi[sz]e|prefer not|need (?:to see|the))\b"
    ),
    "English, what it is": (
        r"\bas an? (?:\w+[ -]){0,4}(?:ai|language model|assistant)\b|\bi'm (?:just |only )?an ai\b|"
        r"\bmy (?:guidelines|programming)\b|"
        r"\b(?:content|usage|safety|community) (?:polic(?:y|ies)|guidelines)\b"
    ),
    "English, at the beginning": (
        r"^(?:sorry|apologies|my apologies|unfortunately|regrettably|unable to|cannot|can't|refused|"
        r"blocked|declined|error\b|request (?:denied|rejected|blocked)|"
        r"(?:please|(?:could|can) you(?: please)?) (?:provide|upload|share|send|attach)|"
        r"no (?:images?|photos?|pictures?)\b|"
        r"it (?:seems|looks like|appears)(?: that)?,? (?:no|there|you|the|i)\b|"
        r"there (?:is|are|was|were|seems to be) no (?:images?|photos?|pictures?)|"
        r"(?:this|the|that|your) (?:request|content|images?|photos?) (?:\w+ ){0,8}?(?:not|violates?|missing|"
        r"rejected|blocked|denied|flagged|inappropriate|explicit|sensitive)\b(?! only))"
    ),
    "Chinese": (
        r"抱歉|对不起|對不起|很遗憾|不好意思|我(?:无法|無法|不能|没办法|沒辦法)|"
        r"作为(?:一个|一個)?(?:AI|人工智能|语言模型)|"
        r"(?:无法|無法|不能)(?:协助|協助|提供|处理|處理|满足|帮助|识别|查看|完成|回答|生成)"
    ),
    "Japanese": r"申し訳|すみません|ごめんなさい|できません|できかねます|お応えできない",
    "Korean": r"죄송|미안|할 수 없|드릴 수 없",
    "German": (
        r"\btut mir (?:\w+ )?leid|entschuldig|^leider\b|\bich kann (?:\w+ ){0,6}(?:nicht|keine)|"
        r"\bals (?:ki|sprachmodell)"
    ),
    "French": r"désolée?\b|\bje ne (?:peux|suis|puis)|^malheureusement|\ben tant qu",
    "Spanish": (r"\blo siento|\bno puedo\b|^lament|^disculp|^desafortunadamente|\bcomo (?:un )?modelo"),
    "Portuguese": r"\bdesculp|\bsinto muito|\bnão (?:posso|consigo)|^infelizmente",
    "Italian": r"\bmi dispiace|\bnon posso\b|^spiacente|^purtroppo",
    "Dutch": r"\bhet spijt me|\bik kan (?:\w+ ){0,6}niet|^helaas",
    "Polish": r"\bprzepraszam|\bprzykro mi|^niestety|\bnie mogę",
    "Czech": r"omlouvám|^bohužel|\bnem(?:ohu|ůžu)\b",
    "Russian": r"извините|простите|к сожалению|я не могу|не могу (?:помочь|выполнить)",
    "Ukrainian": r"вибачте|на жаль|я не можу",
    "Turkish": r"üzgünüm|özür dile|maalesef|olamam",
    "Arabic": r"آسف|عذر|أعتذر|لا (?:أستطيع|يمكنني)",
    "Hebrew": r"מצטער|סליחה|לא יכול|לא ניתן",
    "Hindi": r"क्षमा|माफ़|माफ |खेद",
    "Vietnamese": r"xin lỗi|tôi không thể|rất tiếc",
    "Indonesian": r"^maaf|saya tidak (?:bisa|dapat)",
    "Thai": r"ขออภัย|ขอโทษ|ไม่สามารถ",
    "Swedish, Danish, Norwegian": (
        r"^tyvärr|\bjag kan (?:\w+ )?inte|\bkan jag (?:\w+ )?inte|förlåt|\bbeklager|"
        r"\bjeg kan (?:\w+ )?ikke|\bkan jeg (?:\w+ )?ikke|^desværre"
    ),
    "Finnish": r"^valitettavasti|\ben voi\b|pahoittelen|anteeksi",
    "Greek": r"λυπάμαι|συγγνώμη|δεν μπορώ",
    "Hungarian": r"\bsajn(?:álom|os)\b",
    "Romanian": r"îmi pare rău|\bnu pot\b",
}
ANY = re.compile("|".join(REFUSALS.values()), re.IGNORECASE)


def is_refusal(text: str) -> bool:
    """Whether an answer declines, excuses itself, or asks for something in place of an answer."""
    # What follows the first paragraph may regret some detail.
    return bool(ANY.search(text.replace("’", "'").strip().partition("\n\n")[0]))
