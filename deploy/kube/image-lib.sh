# shellcheck shell=bash
# shellcheck disable=SC2034 # Used by the scripts that source this file.
# Stores images as archives in the cache, and imports them into the nodes. Writes the archives of images with only one or two files
# directly, without a Dockerfile.

archives=$cache/images
pause_image=docker.io/library/pause:0.1.0
busybox_image=docker.io/library/busybox:1
etcdctl_image=docker.io/library/etcdctl:3

# The two images that every pod and every volume needs: the process that holds a pod's namespaces, and a shell. And one with etcdctl.
images_up() {
    mkdir -p "$archives"
    rm -rf "$cache"/basic.??????
    archive_of pause "$pause_image" "$cache/bin/pause" '["/pause"]' pause_layer
    archive_of busybox "$busybox_image" "$busybox" '["/bin/sh"]' busybox_layer
    archive_of etcdctl "$etcdctl_image" "$cache/bin/etcdctl" '["/bin/etcdctl"]' program_layer
}

# An image whose only file is the program of archive_of.
program_layer() { install -D "$program" "$1/bin/${program##*/}"; } # folder

pause_layer() { cp "$cache/bin/pause" "$1/pause"; }

busybox_layer() {
    mkdir -p "$1"/{bin,tmp,etc}
    chmod 1777 "$1/tmp"
    cp "$busybox" "$1/bin/busybox"
    local applet
    for applet in $("$busybox" --list | grep -vx busybox); do
        ln -s busybox "$1/bin/$applet"
    done
    printf 'root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$1/etc/passwd"
}

# Writes an archive if its program has changed: name, image, program, command, and the function that fills the layer.
archive_of() {
    local name=$1 image=$2 program=$3 command=$4 fill=$5 stamp work digest
    stamp=$(cat "$program" "$kube_dir/image-lib.sh" | sha256sum | cut -d' ' -f1)
    if archive_is "$name" "$stamp"; then
        return 0
    fi
    work=$(mktemp -d "$cache/basic.XXXXXX")
    mkdir "$work/layer"
    "$fill" "$work/layer"
    tar -C "$work/layer" --owner=0 --group=0 --numeric-owner --sort=name --mtime=@0 -cf "$work/layer.tar" .
    digest=$(sha256sum "$work/layer.tar" | cut -d' ' -f1)
    cat >"$work/config.json" <<JSON
{"architecture": "$(go env GOARCH)", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ["sha256:$digest"]},
 "config": {"Entrypoint": $command, "Env": ["PATH=/bin"]}}
JSON
    printf '[{"Config": "config.json", "RepoTags": ["%s"], "Layers": ["layer.tar"]}]\n' "$image" >"$work/manifest.json"
    tar -C "$work" -cf "$work/image.tar" manifest.json config.json layer.tar
    archive_keep "$name" "$stamp" "$work/image.tar"
    rm -rf "$work"
}

# Succeeds if an archive of this name exists that was made from the same inputs.
archive_is() { [ -e "$archives/$1.tar" ] && [ "$(cat "$archives/$1.stamp" 2>/dev/null)" = "$2" ]; }

archive_keep() {
    rm -f "$archives/$1.stamp"
    mv "$3" "$archives/$1.tar"
    printf '%s\n' "$2" >"$archives/$1.stamp"
}

# Imports the archives that a node doesn't have yet.
images_load() {
    local node=$1 archive name loaded=$run/node$1/images
    mkdir -p "$loaded"
    for archive in "$archives"/*.stamp; do
        name=$(basename "$archive" .stamp)
        if ! cmp -s "$archive" "$loaded/$name.stamp"; then
            node_ctr "$node" images import "$archives/$name.tar" >"$logs/node$node-import.log" 2>&1 ||
                { tail -n 5 "$logs/node$node-import.log" >&2; die "node$node can't import the image $name"; }
            cp "$archive" "$loaded/$name.stamp"
        fi
    done
}

# Imports the archives into the nodes that are up, and sets `loading`: empty if none is.
images_load_all() {
    local node
    loading=()
    # Holds the lock, so that no node starts or stops meanwhile.
    take_lock
    for node in "${nodes[@]}"; do
        if alive "node$node/containerd"; then
            images_load "$node" &
            loading+=($!)
        fi
    done
    for node in "${loading[@]}"; do
        wait "$node" || die "not all nodes have the images"
    done
}
