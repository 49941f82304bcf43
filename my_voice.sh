#!/usr/bin/env bash
# A voice from your own recordings: looks at them, splits them, goes on training a checkpoint with
# them, judges the result and lets it speak.
#   make my_voice RECORDINGS=DIR                               from `make demo`'s checkpoint
#   make my_voice RECORDINGS=DIR CHECKPOINT=voices/other VOICE=anna EPOCHS=80
# RECORDINGS is a folder as prep_splits.py takes it, at any sampling rate. In the folder VOICE:
#   recordings/        what the recordings are like, and pairs of sound and text that look wrong
#   samples/           pictures and sounds of every validation, alignment.gif, loss.png
#   report.txt, worst/ how the voice says the sentences held out, and the pictures of the worst
#   suspects/          the five clips of the training set that it says worst: check their texts
#   spoken/            sentences it has not seen
# Called again, it goes on where it was stopped, with the recordings as they were split the first
# time. PREP_FLAGS and TRAIN_FLAGS are passed on to prep_splits.py and train_taco.py, and win over
# what stands here.
set -euo pipefail
cd "$(dirname "$0")"

RECORDINGS=${RECORDINGS:?names the folder of your recordings: make my_voice RECORDINGS=DIR}
CHECKPOINT=${CHECKPOINT:-demo/work_dir/demo/final_checkpoint}
VOICE=${VOICE:-my_voice}
EPOCHS=${EPOCHS:-50}
WORD_TIMES=${WORD_TIMES:-} # a word_times.json of the recordings, where there is one
PREP_FLAGS=${PREP_FLAGS:-}
TRAIN_FLAGS=${TRAIN_FLAGS:-}

if [ ! -f "$CHECKPOINT/config.json" ]; then
    echo "my_voice.sh: no checkpoint in $CHECKPOINT: \`make demo\` trains one, CHECKPOINT=DIR names another" >&2
    exit 1
fi
split_from="$RECORDINGS $PREP_FLAGS"
# shellcheck disable=SC2086 # flags are words
if [ ! -f "$VOICE/train_metadata.csv" ]; then
    python prep_splits.py --path_to_ljspech "$RECORDINGS" --path_to_save "$VOICE" \
        --report "$VOICE/recordings" --test_split_pct 0.1 $PREP_FLAGS
    echo "$split_from" >"$VOICE/split_from.txt"
elif [ -f "$VOICE/split_from.txt" ] && [ "$(cat "$VOICE/split_from.txt")" != "$split_from" ]; then
    echo "my_voice.sh: $VOICE is of RECORDINGS and PREP_FLAGS '$(cat "$VOICE/split_from.txt")'," \
        "found '$split_from': name another VOICE, or remove the folder" >&2
    exit 1
elif [ -n "$(find "$RECORDINGS" -newer "$VOICE/train_metadata.csv" -print -quit)" ]; then
    echo "my_voice.sh: $RECORDINGS has changed since $VOICE began, which goes on with the texts and" \
        "the split of then; another VOICE begins anew" >&2
fi

# On a CPU two processes of one thread are faster than one of two threads; each needs a clip to
# validate on.
if python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    environment=() launch=(--num_processes 1 --mixed_precision bf16) batch_size=16
elif [ "$(wc -l <"$VOICE/test_metadata.csv")" -lt 3 ]; then # one clip below the header
    environment=(ACCELERATE_USE_CPU=true) launch=(--num_processes 1 --mixed_precision no) batch_size=16
else
    environment=(OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true)
    launch=(--multi_gpu --num_processes 2 --mixed_precision no) batch_size=8
fi
touch "$VOICE/training_began"
# shellcheck disable=SC2086
env "${environment[@]}" accelerate launch --quiet "${launch[@]}" --num_machines 1 \
    --dynamo_backend no train_taco.py \
    --experiment_name voice --run_name "$(basename "$VOICE")" \
    --working_directory "$VOICE/work_dir" --save_audio_gen "$VOICE/samples" \
    --path_to_train_manifest "$VOICE/train_metadata.csv" \
    --path_to_val_manifest "$VOICE/test_metadata.csv" \
    --warm_start "$CHECKPOINT" --training_epochs "$EPOCHS" --batch_size $batch_size \
    --learning_rate 2e-3 --warmup_steps 50 --min_learning_rate 1e-4 --short_first_epochs 0 \
    --guided_attention_weight 0 --validation_epochs 10 \
    --checkpoint_epochs 1000 --checkpoint_minutes 5 --keep_checkpoints 1 \
    --console_out_iters 20 --num_workers 0 --alignment_warning_steps 500 \
    --resume_from_checkpoint latest_or_new $TRAIN_FLAGS

checkpoint=$VOICE/work_dir/voice/final_checkpoint
if [ ! "$checkpoint/trainer_state.json" -nt "$VOICE/training_began" ]; then
    echo "my_voice.sh: training was stopped; called again, it goes on" >&2
    exit 1
fi
times=()
if [ -n "$WORD_TIMES" ]; then times=(--word_times "$WORD_TIMES"); fi
python evaluate.py --checkpoint "$checkpoint" --path_to_manifest "$VOICE/test_metadata.csv" \
    ${times[@]+"${times[@]}"} --output_json "$VOICE/report.json" --output_csv "$VOICE/clips.csv" \
    --save_worst "$VOICE/worst" | tee "$VOICE/report.txt"
python evaluate.py --checkpoint "$checkpoint" --path_to_manifest "$VOICE/train_metadata.csv" \
    --output_csv "$VOICE/suspects.csv" --save_worst "$VOICE/suspects" >/dev/null
python synthesize.py --checkpoint "$checkpoint" --output_dir "$VOICE/spoken" --overwrite --text \
    "Can you hear my new voice?" "Please hold the line, I will be with you in a moment." ||
    test $? = 2 # a sentence failed, and synthesize.py has said which
echo
echo "Look at    $VOICE/recordings/recordings.png, $VOICE/samples/alignment.gif, $VOICE/worst/*.png"
echo "Check      $VOICE/suspects/*.png: the training clips that the voice says worst"
echo "Listen to  $VOICE/spoken/*.wav"
