package process

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Playground is a running playground: controllers and groups of nodes.
type Playground struct {
	Server
	// The addresses of the nodes that have data: all but the controllers'.
	Members []string
	cli     string
}

// reserveBytes is the space that nodes keep free. It isn't 0, because write buffers are no larger than a sixteenth of it.
const reserveBytes = 512 << 20

// StartPlayground starts a playground with the programs in a folder. It has two groups, so that a node may have to pass a call on.
func StartPlayground(bin string) (*Playground, error) {
	return startPlayground(bin, "2", "1")
}

// StartReplicas starts a playground with one group of three members.
func StartReplicas(bin string) (*Playground, error) {
	return startPlayground(bin, "1", fmt.Sprint(members))
}

func startPlayground(bin, groups, replicas string) (*Playground, error) {
	cli := filepath.Join(bin, "shardkv")
	command := exec.Command(cli, "playground", "--output", "json", "--stop-on-stdin-eof",
		"--controllers", "1", "--groups", groups, "--replicas", replicas, "--shards", "16", "--",
		"--disk-reserve-bytes", fmt.Sprint(reserveBytes))
	command.Stderr = os.Stderr
	stdin, err := command.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := command.Start(); err != nil {
		return nil, err
	}
	stop := func() {
		// The playground stops its nodes when its standard input ends.
		stdin.Close()
		ended := make(chan error, 1)
		go func() { ended <- command.Wait() }()
		select {
		case <-ended:
		case <-time.After(patience):
			command.Process.Kill()
		}
	}
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	var ready struct {
		Nodes []struct {
			Address string
			Gid     int
		}
	}
	if err == nil {
		err = json.Unmarshal(line, &ready)
	}
	if err == nil && len(ready.Nodes) == 0 {
		err = fmt.Errorf("it has no nodes: %s", line)
	}
	if err != nil {
		stop()
		return nil, fmt.Errorf("the playground doesn't start: %w", err)
	}
	playground := &Playground{Server: Server{Stop: stop, pids: []int{command.Process.Pid}}, cli: cli}
	for _, node := range ready.Nodes {
		playground.Addresses = append(playground.Addresses, node.Address)
		if node.Gid != 0 {
			playground.Members = append(playground.Members, node.Address)
		}
	}
	return playground, nil
}

// Keyspace runs `shardkv keyspace` with arguments.
func (p *Playground) Keyspace(args ...string) error {
	args = append([]string{"keyspace", "--endpoints", strings.Join(p.Addresses, ",")}, args...)
	output, err := exec.Command(p.cli, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("shardkv %s: %w: %s", strings.Join(args, " "), err, output)
	}
	return nil
}
