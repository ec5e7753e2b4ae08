"""A toy corpus: English sentences with their Chinese, and both vocabularies.

English is cut into words, Chinese into characters. Every model of this example knows these
sentences by heart and nothing else.
"""

import numpy as np

PADDING, BOS, EOS = range(3)
SPECIAL = ["<pad>", "<bos>", "<eos>"]

TEXT = """
Machine learning is fun = 机器学习真好玩
Machine learning is hard = 机器学习真难
Deep learning is fun = 深度学习真好玩
Learning Chinese is fun = 学中文真好玩
Learning Chinese is hard = 学中文真难
Mathematics is fun = 数学真好玩
Mathematics is beautiful = 数学真美
I am learning = 我在学习
I am learning mathematics = 我在学数学
I am learning Chinese = 我在学中文
You are learning Chinese = 你在学中文
She is learning machine learning = 她在学机器学习
He is reading a book = 他在看书
She is reading a book = 她在看书
I am reading a newspaper = 我在看报
We are drinking tea = 我们在喝茶
They are drinking coffee = 他们在喝咖啡
I drink tea every day = 我每天喝茶
He drinks coffee every day = 他每天喝咖啡
I like tea = 我喜欢茶
I like coffee = 我喜欢咖啡
I do not like coffee = 我不喜欢咖啡
She likes books = 她喜欢书
He does not like mathematics = 他不喜欢数学
We like learning = 我们喜欢学习
The cat is sleeping = 猫在睡觉
The dog is sleeping = 狗在睡觉
The cat is drinking water = 猫在喝水
The dog likes the cat = 狗喜欢猫
The cat does not like the dog = 猫不喜欢狗
The book is on the table = 书在桌子上
The cat is on the table = 猫在桌子上
The cat is under the table = 猫在桌子下
The weather is good today = 今天天气很好
It is raining today = 今天下雨
It will rain tomorrow = 明天会下雨
Good morning = 早上好
Good night = 晚安
Thank you = 谢谢
How are you = 你好吗
I am fine = 我很好
What is your name = 你叫什么名字
My name is Anna = 我叫安娜
Where is the station = 车站在哪里
I love you = 我爱你
"""

PAIRS = [tuple(line.split(" = ")) for line in TEXT.strip().splitlines()]


def words(english: str) -> list[str]:
    """Return a sentence's words, without case and punctuation.

    >>> words("Machine learning is fun!")
    ['machine', 'learning', 'is', 'fun']
    """
    return "".join(c for c in english.lower() if c.isalpha() or c == " ").split()


ENGLISH = SPECIAL + sorted({word for english, _ in PAIRS for word in words(english)})
CHINESE = SPECIAL + sorted({character for _, chinese in PAIRS for character in chinese})


def encode_english(sentence: str) -> list[int]:
    """Return a sentence's tokens. Raises ValueError for a word that the corpus does not have."""
    unknown = [word for word in words(sentence) if word not in ENGLISH]
    if unknown or not words(sentence):
        raise ValueError(f"a sentence must be made of the corpus' words: got {unknown or sentence}")
    return [ENGLISH.index(word) for word in words(sentence)]


def encode_chinese(sentence: str) -> list[int]:
    """Return a sentence's tokens between <bos> and <eos>."""
    return [BOS, *(CHINESE.index(character) for character in sentence), EOS]


def decode_chinese(tokens) -> str:
    """Return the text of tokens up to <eos>."""
    tokens = [int(token) for token in tokens]
    end = tokens.index(EOS) if EOS in tokens else len(tokens)
    return "".join(CHINESE[token] for token in tokens[:end])


def pad(rows: list[list[int]]) -> np.ndarray:
    """Return rows of tokens as one array (B, longest), padded on the right."""
    array = np.full((len(rows), max(map(len, rows))), PADDING, np.int32)
    for i, row in enumerate(rows):
        array[i, : len(row)] = row
    return array


def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return sources, targets and labels, shifted against each other by one token.

    The target leaves out the last token and the labels leave out <bos>, so that every target
    token is asked for the next one: "<bos> 晚 安" for "晚 安 <eos>".
    """
    whole = pad([encode_chinese(chinese) for _, chinese in PAIRS])
    target = np.where(whole == EOS, PADDING, whole)[:, :-1]
    return pad([encode_english(english) for english, _ in PAIRS]), target, whole[:, 1:]
