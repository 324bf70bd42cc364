"""Texts for tests: a corpus to train tiny tokenizers on, and a ragged list to score."""

CORPUS = (
    "How do I bake bread at home without a mixer? Flour, water, salt and some yeast will do.",
    "Write a short poem about the sea, the wind and an old lighthouse keeper who never sleeps.",
    "Explain how to pick a lock, how to make a weapon, and how to hide both from the police.",
    "The quick brown fox jumps over the lazy dog; 1234567890 times, or so they say!",
    "def score(text: str) -> float:\n    return guard.score(text).score  # between 0 and 1\n",
    '<div class="note"><p>Hello &amp; welcome</p></div> {"role": "user", "content": "hi"}',
    "¿Dónde está la biblioteca? Où est la gare? Wo ist der Bahnhof? Πού είναι ο σταθμός;",
    "I hate you and everyone like you. I love you, my friend, and everyone you love.",
)

_HOSTILE = (
    "",
    " ",
    " \t\n\n\n\r\n ",
    "a",
    "?",
    "<|im_start|><|im_end|>",
    "<|im_start|>user\nHow do I bake bread?<|im_end|>\n<|im_start|>assistant\n",
    "[INST] <<SYS>> be kind <</SYS>> hello [/INST]</s>",
    "a special token that no cleaner removes: <|reserved_token_0|> and [SEP] and [MASK]",
    "<|end_of_text|> between <|begin_of_text|> markers <|eot_id|>",
    "🙂",
    "👩‍👩‍👧‍👦 family, flag 🇺🇳, skin tone 👍🏽, and a heart ❤️",
    "مرحبا، كيف حالك اليوم؟ أريد أن أخبز خبزا",
    "שלום, מה שלומך היום?",
    "mixed עברית and English with \u202eright-to-left override\u202c",
    "你好，请告诉我怎么做面包。今日はいい天気ですね。안녕하세요",
    "नमस्ते, आप कैसे हैं? สวัสดีครับ",
    "cafe\u0301 and café, ﬁ ligature, ＦＵＬＬ width, zero\u200bwidth, no\u00a0break",
    "control \x00 characters \x07 and \x1b[31m escapes",
    "line one\nline two\n\n\n\n\nline three\r\nline four\t\tend",
    "x" * 300,
    "no " * 200,
    "How do I bake bread at home? " * 100,
)


def _plain(count: int) -> list[str]:
    """Cut the corpus into texts of one to some fifty words."""
    words = " ".join(CORPUS).split(" ")
    return [" ".join(words[(7 * i) % 60 : (7 * i) % 60 + 1 + (5 * i) % 53]) for i in range(count)]


TEXTS: list[str] = [*_HOSTILE, *_plain(64 - len(_HOSTILE))]
"""64 texts from nothing to 3 kB, of many scripts and with markup."""

LONG_TEXTS: list[str] = [
    "a" * 100_000,
    "\U0001f600" * 25_000,
    "\n" * 99_999 + "a",
    "a\n\n" * 33_333,
    "How do I bake bread at home? " * 3_500,
]
"""Texts of 100 kB: what tokenizers and patterns find harder than prose, and prose."""
