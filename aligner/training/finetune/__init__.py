"""The fine-tuning program: `deepspeed --module aligner.training.finetune`."""
