#!/usr/bin/env bash
# The reference LJSpeech run, with every option visible. Set the paths, then:
#   bash train_taco.sh                                   trains from the start
#   bash train_taco.sh --resume_from_checkpoint latest   goes on after an interruption
#   NUM_PROCESSES=4 bash train_taco.sh                   trains on 4 GPUs, each with its own batch
#   bash train_taco.sh --resume_from_checkpoint latest_or_new   goes on, or starts where there is none
# Extra arguments are passed on and win over those below. For several machines, change the
# `accelerate launch` options (README.md has the commands).
set -euo pipefail
cd "$(dirname "$0")"

PATH_TO_TRAIN_MANIFEST=${PATH_TO_TRAIN_MANIFEST:-data/train_metadata.csv}
PATH_TO_VAL_MANIFEST=${PATH_TO_VAL_MANIFEST:-data/test_metadata.csv}
WORKING_DIRECTORY=${WORKING_DIRECTORY:-work_dir}
SAVE_AUDIO_GEN=${SAVE_AUDIO_GEN:-work_dir/samples}
MIXED_PRECISION=${MIXED_PRECISION:-bf16} # no, bf16 or fp16
NUM_PROCESSES=${NUM_PROCESSES:-1} # one for each GPU; --batch_size is for each of them

arguments=(
    --experiment_name tacotron2
    --run_name tacotron2_trainer
    --working_directory "$WORKING_DIRECTORY"
    --save_audio_gen "$SAVE_AUDIO_GEN"
    --path_to_train_manifest "$PATH_TO_TRAIN_MANIFEST"
    --path_to_val_manifest "$PATH_TO_VAL_MANIFEST"

    # The run
    --training_epochs 250
    --batch_size 64 # per device
    --gradient_accumulation_steps 1
    # --sync_batch_norm # for several GPUs: batch norm over the batches of all of them together
    --learning_rate 0.001
    --min_learning_rate "1e-5"
    --start_decay_epochs 125
    --warmup_steps 100 # optimizer steps, whatever the batch size; decay counts epochs
    --weight_decay "1e-6"
    --adam_eps "1e-6"
    --max_grad_norm 1.0
    --guided_attention_weight 5.0
    --guided_attention_sigma 0.2
    --guided_attention_steps 300
    --drop_frame_rate 0.0 # 0.1 to 0.2 where attention does not align
    --stop_positive_weight 1.0 # 5 to 10 where free running does not stop
    --short_first_epochs 1
    --alignment_warning_steps 2000
    --console_out_iters 5
    --wandb_log_iters 5
    --validation_epochs 1
    --checkpoint_epochs 25
    --keep_pictures 30 # epochs; the film shows them
    --max_decoder_steps 2000
    --num_workers 32
    --seed 42
    --log_wandb
    # Off, because only some runs want them
    # --log_tensorboard               # needs pip install -r requirements/tensorboard.txt
    # --resume_from_checkpoint latest # or latest_or_new, a checkpoint's name, its path
    # --overwrite                     # start anew in a folder that holds checkpoints
    # --checkpoint_minutes 30         # checkpoints in the middle of an epoch too
    # --keep_checkpoints 3            # numbered ones, those written last
    # --vocoder hifigan               # needs pip install -r requirements/vocoder.txt
    # --free_running_clips 16         # fewer than a tenth of an epoch's time allows
    # --skip_nonfinite                # leave out steps that are not finite, and count them
    # --path_to_symbols symbols.json  # another table of symbols
    # --extra_symbols 'äöüß'          # symbols to add to the table
    # --cleaner basic                 # for other languages than English
    # --phonemes                      # half the words of half the clips as CMUdict's phonemes
    # --warm_start voices/anna        # a checkpoint's weights; the flags below must be as its own
    # --warm_start_allow_mismatch     # with those of them that fit

    # Audio
    --sampling_rate 22050
    --num_mels 80
    --n_fft 1024
    --window_size 1024
    --hop_size 256
    --min_db "-100"
    --max_scaled_abs 4
    --fmin 0
    --fmax 8000
    --mel_scaling scaled_db

    # Model
    --character_embed_dim 512
    --encoder_kernel_size 5
    --encoder_n_convolutions 3
    --encoder_embed_dim 512
    --encoder_dropout_p 0.5
    --decoder_rnn_embed_dim 1024
    --decoder_dropout_p 0.1
    --decoder_prenet_dim 256
    --decoder_prenet_depth 2
    --decoder_prenet_dropout_p 0.5
    --decoder_postnet_num_convs 5
    --decoder_postnet_n_filters 512
    --decoder_postnet_kernel_size 5
    --decoder_postnet_dropout_p 0.5
    --attention_dim 128
    --attention_dropout_p 0.1
    --attention_location_n_filters 32
    --attention_location_kernel_size 31
    --fast_decoder
)

launch=(--quiet --num_processes "$NUM_PROCESSES" --num_machines 1)
launch+=(--mixed_precision "$MIXED_PRECISION" --dynamo_backend no)
if ((NUM_PROCESSES > 1)); then launch+=(--multi_gpu); fi
# In the background, so that bash takes signals at once; <&0 leaves it the keyboard (wandb may ask).
accelerate launch "${launch[@]}" train_taco.py "${arguments[@]}" "$@" <&0 &

# With one process, accelerate's launcher passes no signal on, so this script does. Training then
# writes a checkpoint and ends, and the script waits until it has.
trap 'pkill -TERM -P $! || true' INT TERM HUP USR1
while kill -0 $! 2>/dev/null; do wait $! || true; done
wait $!
