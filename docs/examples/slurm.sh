#!/usr/bin/env bash
# One run on four machines of eight GPUs: sbatch docs/examples/slurm.sh
# A process for each GPU. JAX finds the others by SLURM's variables, and gives each process of a machine
# the GPU of its number there, so every process must see all of them: no --gpus-per-task.
#SBATCH --job-name=jaxcnn
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
set -euo pipefail

# Two minutes before the time is over, SLURM sends SIGUSR1: the run saves and stops. With
# --kill-on-bad-exit a process that fails ends the others at once. Given again, by hand or by a
# requeue, the same script resumes.
exec srun --kill-on-bad-exit=1 --output="slurm-%j-%t.log" \
  python train.py --config configs/resnet18.py --workdir "runs/resnet18" --distributed
