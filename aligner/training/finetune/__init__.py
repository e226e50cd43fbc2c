"""The program that every rank runs: deepspeed --module aligner.training.finetune."""
