#!/usr/bin/env bash
# Tries the containers on one machine: a coordinator and two sites, each with a compose file of its own, train both
# stages for two rounds on phantom patients; then the generators are fetched. Needs: cmrfed installed here, podman and
# podman-compose (or docker: ENGINE=docker COMPOSE="docker compose"), and the image cmrfed:cpu.
#
#   docker/try-compose.sh FOLDER          FOLDER is made anew
set -euo pipefail
FOLDER=${1:?a new folder}
ENGINE=${ENGINE:-podman}
COMPOSE=${COMPOSE:-podman-compose}
HOST=${HOST:-$(hostname -I | cut -d" " -f1)} # how a container reaches this machine
export CMRFED_IMAGE=${CMRFED_IMAGE:-localhost/cmrfed:cpu} CMRFED_UID=10001 CMRFED_GID=10001
mkdir "$FOLDER" && cd "$FOLDER"
said() { printf '\n== %s\n' "$*"; }

finish() {
    for kit in site-a site-b coordinator; do (cd "kits/$kit" && $COMPOSE down > /dev/null 2>&1) || true; done
}
trap finish EXIT

cat > federation.yaml <<YAML
name: try
coordinator: {host: $HOST, port: 18943}
sites: [{name: site-a}, {name: site-b}]
YAML
tiny='{generator: {backbone: {channels: [32], layers_per_block: 1, patch_px: 4, attention_levels: 0, norm_groups: 4}}, training: {rounds: 2, local_steps: 2, batch_size: 2}}'
cat > recipe.yaml <<YAML
name: try
data: {size_px: 64, partition: {sites: 2}}
mask: $tiny
image: $tiny
federation: {connect_timeout_s: 600, weighting: equal}
compute: {threads: 1}
YAML
said "kits"
cmrfed provision federation.yaml --out kits
said "phantom patients, one cohort for each site"
cmrfed phantom scans --patients 6 --sites 2
for number in 0 1; do cmrfed prepare "scans/site-$number" "cohort-$number" --source acdc; done
sed -i 's/^epsilon_cap: 8/epsilon_cap: null/; s/^permitted_units: .*/permitted_units: [none]/; s/^smallest_cohort: .*/smallest_cohort: 2/' kits/site-*/site/policy.yaml
mkdir -p kits/site-a/site/cohort kits/site-b/site/cohort
mkdir -p cohort-0.ledger cohort-1.ledger
chown -R 10001:10001 kits/coordinator kits/site-a kits/site-b cohort-0 cohort-1 cohort-0.ledger cohort-1.ledger

said "start"
(cd kits/coordinator && $COMPOSE up -d)
(cd kits/site-a && CMRFED_COHORT=$PWD/../../cohort-0 $COMPOSE up -d)
(cd kits/site-b && CMRFED_COHORT=$PWD/../../cohort-1 $COMPOSE up -d)
in_kit() { local kit=$1 service=$2; shift 2; (cd "kits/$kit" && CMRFED_COHORT=/ $COMPOSE exec -T "$service" cmrfed "$@"); }
until in_kit coordinator superlink coordinator status /kit 2> /dev/null | grep -q '^site site-b'; do sleep 3; done

said "submit, and approve at both sites what waits there"
cp recipe.yaml kits/coordinator/state/recipe.yaml
in_kit coordinator superlink coordinator submit /kit /kit/state/recipe.yaml
digest=$(in_kit site-a node bundle)
for site in site-a site-b; do in_kit "$site" node site approve /kit "$digest"; done

said "the node has no other way out than the gate"
until in_kit site-a node health 127.0.0.1:18545 2> /dev/null; do sleep 3; done
if (cd kits/site-a && CMRFED_COHORT=/ $COMPOSE exec -T node python3 -c "import socket; socket.create_connection(('$HOST', 18943), 5)") 2> /dev/null; then
    echo "the node reached the coordinator past the gate" >&2
    exit 1
else
    echo "the node cannot reach $HOST:18943 itself"
fi

said "train"
until in_kit coordinator superlink coordinator status /kit | tee status.txt | grep -q 'run try: finished;'; do
    if grep -q STOPPED status.txt; then cat status.txt; exit 1; fi
    sleep 5
done
cat status.txt
said "what site-a noted"
in_kit site-a node site status /kit | tail -8
said "fetch and draw"
cmrfed coordinator fetch kits/coordinator try --out fetched
cmrfed synthesize fetched --out synthetic --patients 1
