"""One model: sound and text in, logits over text and sound out."""
