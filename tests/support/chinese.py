"""Which words of a Chinese text are an English sentence."""

import re

# What may be English: `…`, a command to type, a quoted value, a path, a setting
QUOTED = re.compile(r"""`[^`]*`|\bjust [a-z][^，。；：（）\n]*|'[^'\n]*'|"[^"\n]*"|\S*/[!-~]*|[\w.]+=[!-~]*""")
THREE_WORDS = re.compile(r"[a-z]{2,}(?:,? [a-z]{2,}){2,}", re.IGNORECASE)


def english(text):
    """Three and more words in a row, apart from code, commands, paths, settings and quoted values."""
    return THREE_WORDS.findall(QUOTED.sub("·", text))
