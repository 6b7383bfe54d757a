"""The judge: a prompt and two answers in, reasons and an ordinal score out."""
