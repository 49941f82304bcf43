#!/usr/bin/env bash
# The reference LJSpeech run, with every option visible. Set the paths, then:
#   bash train_taco.sh                                          trains from the start
#   bash train_taco.sh --resume_from_checkpoint latest          resumes an interrupted run
#   bash train_taco.sh --resume_from_checkpoint latest_or_new   resumes, or starts a new run
#   NUM_PROCESSES=4 bash train_taco.sh                          trains on 4 GPUs
# Arguments that you add override those below. SIGTERM, SIGINT (Ctrl-C), SIGUSR1 (SLURM's warning)
# and SIGHUP (a closed terminal) finish the step, write a checkpoint and end the run.
set -euo pipefail
cd "$(dirname "$0")"

PATH_TO_TRAIN_MANIFEST=${PATH_TO_TRAIN_MANIFEST:-data/train_metadata.csv}
PATH_TO_VAL_MANIFEST=${PATH_TO_VAL_MANIFEST:-data/test_metadata.csv}
WORKING_DIRECTORY=${WORKING_DIRECTORY:-work_dir}
SAVE_AUDIO_GEN=${SAVE_AUDIO_GEN:-work_dir/samples}
MIXED_PRECISION=${MIXED_PRECISION:-bf16} # no, bf16 or fp16
NUM_PROCESSES=${NUM_PROCESSES:-1}        # one per GPU

arguments=(
    --experiment_name tacotron2
    --run_name tacotron2_trainer
    --working_directory "$WORKING_DIRECTORY"
    --save_audio_gen "$SAVE_AUDIO_GEN"
    --path_to_train_manifest "$PATH_TO_TRAIN_MANIFEST"
    --path_to_val_manifest "$PATH_TO_VAL_MANIFEST"

    # The run
    --training_epochs 250
    --batch_size 64 # per process
    --gradient_accumulation_steps 1
    # --sync_batch_norm # several GPUs normalize over all of their batches together
    --learning_rate 0.001
    --min_learning_rate "1e-5"
    # --start_decay_epochs 125 # default: half of --training_epochs
    --warmup_steps 100 # optimizer steps
    --weight_decay "1e-6"
    --adam_eps "1e-6"
    --max_grad_norm 1.0
    --guided_attention_weight 5.0
    --guided_attention_sigma 0.2
    --guided_attention_steps 300
    --drop_frame_rate 0.0      # try 0.5 if the voice does not say its texts
    --stop_positive_weight 1.0 # try 5 to 10 if free running does not stop
    --stop_tail_frames 8       # 0 trains the stop token up to each clip's end alone
    --l1_weight 1.0            # 0 is the paper's squared error alone
    --short_first_epochs 1
    --alignment_warning_steps 2000
    --console_out_iters 5
    --wandb_log_iters 5
    --validation_epochs 1
    --checkpoint_epochs 25
    --checkpoint_minutes 30
    --keep_pictures 30 # epochs, for the film
    --max_decoder_steps 2000
    --num_workers 32
    --seed 42
    --log_wandb
    # Off unless you want them
    # --log_tensorboard               # needs pip install -r requirements/tensorboard.txt
    # --resume_from_checkpoint latest # or latest_or_new, a checkpoint's name or its path
    # --overwrite                     # remove the checkpoints of an earlier run and start anew
    # --keep_checkpoints 3            # keep only the newest numbered checkpoints
    # --cache_mels data/mels          # compute mels in the first epoch only; 2.4 GB for LJSpeech
    # --vocoder universal             # needs pip install -r requirements/vocoder.txt
    # --free_running_clips 16         # default: as many as a tenth of an epoch's time allows
    # --path_to_symbols symbols.json  # replace the table of symbols
    # --extra_symbols 'äöüß'          # add symbols to the table
    # --cleaner basic                 # for languages other than English
    # --phonemes cmudict              # half the words of half the clips as CMUdict's phonemes
    #   or --phonemes espeak --language de   # all words as espeak-ng's phonemes, of any language
    # --lexicon words.tsv             # word<TAB>respelling or phonemes, kept in the checkpoint
    # --warm_start voices/anna        # start from a checkpoint's weights; set its sizes below
    # --warm_start_allow_mismatch     # load only the weights that fit

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
    --frames_per_step 1        # 2 or 3 with fewer than a few hours of speech
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

if ((NUM_PROCESSES == 1)); then # no launcher, so that signals reach training itself
    export ACCELERATE_MIXED_PRECISION=$MIXED_PRECISION OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    exec python train_taco.py "${arguments[@]}" "$@"
fi
# torch's launcher passes these signals on to every process, then waits up to 30 s for them to end.
PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGQUIT,SIGUSR1
if [[ -z $(trap -p HUP) ]]; then PET_SIGNALS_TO_HANDLE+=,SIGHUP; fi # not under nohup
export PET_SIGNALS_TO_HANDLE
# For several machines, change these options: docs/training.md has the commands.
exec accelerate launch --multi_gpu --num_processes "$NUM_PROCESSES" --num_machines 1 \
    --main_process_port 0 --mixed_precision "$MIXED_PRECISION" --dynamo_backend no \
    train_taco.py "${arguments[@]}" "$@"
