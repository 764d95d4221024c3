// Command shim takes the command line of etcd, and runs a node of a store without controllers in its place. Its file is named
// `etcd`, in a folder with `shardkv` and `shardkv-node`, so that etcd's own tests start it as they start an etcd.
//
// The client URL is a listener that is bound to one keyspace. The process becomes the node: it keeps its process id, so the signals
// of a test (SIGTERM, SIGKILL, SIGSTOP) reach the node itself. A companion, which the kernel ends with the node, creates the
// keyspace, and prints etcd's line for readiness when the keyspace answers. For TLS and unix sockets the companion is also a proxy in
// front of the node, because the node has neither yet.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"go.etcd.io/etcd/api/v3/version"
)

// The environment variable that makes this program the companion.
const companionVariable = "SHARDKV_SHIM_COMPANION"

// The parent-death signal follows the thread that started the companion. The main thread is the one that survives an exec.
func init() { runtime.LockOSThread() }

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "etcd:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 1 && args[0] == "--version" {
		fmt.Printf("etcd Version: %s\n", version.Version)
		return nil
	}
	member, err := parse(args)
	if err != nil {
		return err
	}
	programs, err := folder()
	if err != nil {
		return err
	}
	if os.Getenv(companionVariable) != "" {
		if err := accompany(member, filepath.Join(programs, "shardkv")); err != nil {
			// A node that never gets ready would leave its test waiting for ever.
			syscall.Kill(os.Getppid(), syscall.SIGKILL)
			return err
		}
		return nil
	}
	companion := exec.Command("/proc/self/exe", args...)
	companion.Env = append(os.Environ(), companionVariable+"=1")
	companion.Stdout, companion.Stderr = os.Stdout, os.Stderr
	companion.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := companion.Start(); err != nil {
		return err
	}
	node := filepath.Join(programs, "shardkv-node")
	return syscall.Exec(node, append([]string{node}, member.node()...), os.Environ())
}

// folder returns the folder of this program, in which the others are.
func folder() (string, error) {
	self, err := os.Executable()
	return filepath.Dir(self), err
}
