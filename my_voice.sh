#!/usr/bin/env bash
# Make a voice from your own recordings: inspect and split them, fine-tune a checkpoint on them,
# score the result and let it speak.
#   make my_voice RECORDINGS=DIR      starts from the checkpoint of `make demo`
#   make my_voice RECORDINGS=DIR LANGUAGE=de      starts from that of `make demo LANGUAGE=de`
#   make my_voice RECORDINGS=DIR CHECKPOINT=voices/other VOICE=anna EPOCHS=150
# RECORDINGS is a folder that prep_splits.py reads, at any sampling rate. The folder VOICE gets:
#   recordings/        a report on the recordings, and pairs of sound and text that look wrong
#   mels/              the recordings' mels, which training reads; remove them when it is done
#   samples/voice/     pictures and sounds of every validation, alignment.gif, loss.png
#   report.txt, worst/ scores on the sentences held out, and pictures of the worst
#   suspects/          the five training clips with the worst scores: check their texts
#   spoken/            new sentences in the new voice: the script's arguments, or two English ones
# Run it again to resume; the recordings stay split as they were. prep_splits.py and train_taco.py
# get PREP_FLAGS and TRAIN_FLAGS, which override the flags below.
set -euo pipefail
cd "$(dirname "$0")"

RECORDINGS=${RECORDINGS:?names the folder of your recordings: make my_voice RECORDINGS=DIR}
CHECKPOINT=${CHECKPOINT:-demo/work_dir/demo/final_checkpoint}
VOICE=${VOICE:-my_voice}
EPOCHS=${EPOCHS:-80}
WORD_TIMES=${WORD_TIMES:-} # word_times.json of the recordings, if you have one
ASR=${ASR:-} # speech recognizer that counts word errors, such as openai/whisper-tiny.en
ASR_LANGUAGE=${ASR_LANGUAGE:-} # de, where the recognizer knows several languages
PREP_FLAGS=${PREP_FLAGS:-}
TRAIN_FLAGS=${TRAIN_FLAGS:-}
VOCODER=${VOCODER:-auto} # of all sounds, as synthesize.py takes it

fail() {
    echo "my_voice.sh: $*" >&2
    exit 1
}
if [ ! -f "$CHECKPOINT/config.json" ]; then
    fail "no checkpoint in $CHECKPOINT: \`make demo\` trains one (with the" \
        "same LANGUAGE and PHONEMES, if you gave any), CHECKPOINT=DIR names another"
fi
split_from="${RECORDINGS%/} $PREP_FLAGS"
# shellcheck disable=SC2086 # flags are words
if [ ! -f "$VOICE/train_metadata.csv" ]; then
    python prep_splits.py --path_to_ljspech "$RECORDINGS" --path_to_save "$VOICE" \
        --report "$VOICE/recordings" --test_split_pct 0.1 $PREP_FLAGS
    echo "$split_from" >"$VOICE/split_from.txt"
    echo "$CHECKPOINT" >"$VOICE/begun_with.txt"
elif [ -f "$VOICE/split_from.txt" ] && [ "$(cat "$VOICE/split_from.txt")" != "$split_from" ]; then
    fail "$VOICE was made from RECORDINGS and PREP_FLAGS '$(cat "$VOICE/split_from.txt")'," \
        "not '$split_from': name another VOICE, or remove the folder"
elif [ -f "$VOICE/begun_with.txt" ] && [ "$(cat "$VOICE/begun_with.txt")" != "$CHECKPOINT" ]; then
    fail "$VOICE was begun with CHECKPOINT '$(cat "$VOICE/begun_with.txt")', not '$CHECKPOINT':" \
        "name another VOICE, or remove the folder"
elif [ -n "$(find "$RECORDINGS" -newer "$VOICE/train_metadata.csv" -print -quit)" ]; then
    echo "my_voice.sh: $RECORDINGS has changed, but $VOICE keeps the texts and the split that it" \
        "started with; name another VOICE to use the changes" >&2
fi

# On a CPU, two processes of one thread are faster than one process of two threads; each needs a
# validation clip.
if python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    launch=(env ACCELERATE_MIXED_PRECISION=bf16 python) batch_size=32
elif [ "$(wc -l <"$VOICE/test_metadata.csv")" -lt 3 ]; then # the header and one clip
    launch=(env ACCELERATE_USE_CPU=true python) batch_size=32
else
    launch=(env OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true accelerate launch) batch_size=16
    launch+=(--multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0)
    # Half precision pays only on a CPU that multiplies matrices in bfloat16.
    precision=$(grep -qsE "amx_bf16|avx512_bf16" /proc/cpuinfo && echo bf16 || echo no)
    launch+=(--mixed_precision "$precision" --dynamo_backend no)
fi
touch "$VOICE/training_began"
# shellcheck disable=SC2086
"${launch[@]}" train_taco.py \
    --experiment_name voice --run_name "$(basename "$VOICE")" \
    --working_directory "$VOICE/work_dir" --save_audio_gen "$VOICE/samples" \
    --path_to_train_manifest "$VOICE/train_metadata.csv" \
    --path_to_val_manifest "$VOICE/test_metadata.csv" \
    --warm_start "$CHECKPOINT" --training_epochs "$EPOCHS" --batch_size $batch_size \
    --learning_rate 3e-3 --warmup_steps 50 --min_learning_rate 1e-4 --short_first_epochs 0 \
    --guided_attention_weight 0 --drop_frame_rate 0.5 --validation_epochs 10 \
    --checkpoint_epochs 1000 --checkpoint_minutes 5 --keep_checkpoints 1 \
    --console_out_iters 20 --num_workers 0 --cache_mels "$VOICE/mels" --alignment_warning_steps 500 \
    --resume_from_checkpoint latest_or_new $TRAIN_FLAGS

checkpoint=$VOICE/work_dir/voice/final_checkpoint
if [ ! "$checkpoint/trainer_state.json" -nt "$VOICE/training_began" ]; then
    fail "training was stopped; run the same command again to resume"
fi
judges=()
if [ -n "$WORD_TIMES" ]; then judges+=(--word_times "$WORD_TIMES"); fi
if [ -n "$ASR" ]; then judges+=(--asr "$ASR"); fi
if [ -n "$ASR_LANGUAGE" ]; then judges+=(--asr_language "$ASR_LANGUAGE"); fi
python evaluate.py --checkpoint "$checkpoint" --path_to_manifest "$VOICE/test_metadata.csv" \
    ${judges[@]+"${judges[@]}"} --vocoder "$VOCODER" --output_json "$VOICE/report.json" \
    --output_csv "$VOICE/clips.csv" --save_worst "$VOICE/worst" | tee "$VOICE/report.txt"
python evaluate.py --checkpoint "$checkpoint" --path_to_manifest "$VOICE/train_metadata.csv" \
    --output_csv "$VOICE/suspects.csv" --save_worst "$VOICE/suspects" >/dev/null
if [ $# = 0 ]; then
    set -- "Can you hear my new voice?" "Please hold the line, I will be with you in a moment."
fi
python synthesize.py --checkpoint "$checkpoint" --output_dir "$VOICE/spoken" --overwrite \
    --vocoder "$VOCODER" --text "$@" ||
    test $? = 2 # a sentence failed, and synthesize.py has named it
echo
echo "Look at    $VOICE/recordings/recordings.png, $VOICE/samples/voice/alignment.gif, $VOICE/worst/*.png"
echo "Check      $VOICE/suspects/*.png: the training clips with the worst scores"
echo "Listen to  $VOICE/spoken/*.wav"
