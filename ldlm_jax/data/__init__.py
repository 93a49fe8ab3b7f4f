"""From text to batches: corpora, tokenizer, packed datasets, input pipeline."""
