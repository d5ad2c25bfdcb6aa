"""Another vocabulary for a model: factorised embeddings, words of tokens, predicted rows, and the model they make.

factorise.py    embeddings as coordinates in a few directions
wordfile.py     word vectors from a file
tokens.py       tokenizers, and which token of one is which of another
words.py        the words that a token occurs in
data.py         what a generator learns from
baselines.py    what it has to beat
asking.py       a generator's rows, and how near they are
matrices.py     the tensors of a model with a row a token
model.py        the model, its tokenizer, its rows
train.py        train_hyperofa
assemble.py     the new checkpoint, streamed; which rows are copied, predicted, drawn
files.py        config, tokenizer and the rest beside it
expand.py       expand_vocabulary, generate_vocabulary
"""
