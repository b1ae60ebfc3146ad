#!/usr/bin/env bash
# Write one data set with an array job of Slurm. On the login node, from the folder in which the run is to take place:
#
#     PARTS=16 bash examples/slurm_array.sh corpus=jsonl corpus.path=/data/text shards.path=/data/ds cache.path=/data/cache
#
# It submits three jobs. The arguments are the overrides that a run on one machine takes; all paths must be visible on
# all nodes. Set what your cluster wants (account, partition, time) below, or by SBATCH_ACCOUNT and its like.
#
#SBATCH --job-name=stridemill
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --output=stridemill-%A_%a.log
set -euo pipefail
stridemill=${STRIDEMILL:-stridemill} # the command, such as "python -m pipeline" in a checkout

case "${1:-}" in
tokenize) # a part of an array: exit code 75 says that pass two waits for other parts, which the next array will find
  shift
  $stridemill "$@" stages=write "executor.part=$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" || [ $? -eq 75 ]
  ;;
write) # the same again: its chunks are found, and its shards are written
  shift
  $stridemill "$@" stages=write "executor.part=$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
  ;;
finish) # make what is still missing, also of parts that failed, write the manifest, and check all
  shift
  $stridemill "$@" "stages=[write,verify]"
  ;;
*)
  parts=${PARTS:-16}
  script=$(realpath "$0")
  first=$(sbatch --parsable --array="0-$((parts - 1))" "$script" tokenize "$@")
  second=$(sbatch --parsable --array="0-$((parts - 1))" --dependency="afterany:$first" "$script" write "$@")
  last=$(sbatch --parsable --dependency="afterany:$second" "$script" finish "$@")
  echo "submitted the arrays $first and $second, and $last, which completes the data set"
  ;;
esac
