// Compose checks deploy/compose.yaml without a container engine. It validates the file by the library of docker compose, and
// checks the requirements of a cluster: each node has the right peers, its data outlive its container, and the groups join with
// the right addresses.
package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: compose COMPOSE_FILE")
		os.Exit(2)
	}
	nodes, err := check(os.Args[1])
	if err != nil {
		fmt.Fprintf(os.Stderr, "compose: %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
	fmt.Printf("compose: %s is well formed; %d nodes know their peers, keep their data, and are joined\n", os.Args[1], nodes)
}

// check returns how many nodes the file has.
func check(path string) (int, error) {
	options, err := cli.NewProjectOptions([]string{path}, cli.WithProfiles([]string{"*"}))
	if err != nil {
		return 0, err
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		return 0, err
	}
	peers := map[string][]string{}
	nodes := 0
	for name, service := range project.Services {
		group, err := node(project, service)
		if err != nil {
			return 0, fmt.Errorf("service %s: %w", name, err)
		}
		if group != "" {
			nodes++
			peers[group] = append(peers[group], name+":7400")
		}
	}
	if nodes == 0 {
		return 0, fmt.Errorf("there is no node")
	}
	join, err := project.GetService("join")
	if err != nil {
		return 0, err
	}
	for group, addresses := range peers {
		slices.Sort(addresses)
		argument := group + "=" + strings.Join(addresses, ",")
		if group != "0" && !slices.Contains(join.Command, argument) {
			return 0, fmt.Errorf("service join lacks the argument %s", argument)
		}
		for _, address := range addresses {
			name := strings.TrimSuffix(address, ":7400")
			listed := strings.Split(*project.Services[name].Environment["SHARDKV_PEERS"], ",")
			slices.Sort(listed)
			if !slices.Equal(listed, addresses) {
				return 0, fmt.Errorf("service %s: its peers are %v, those of group %s are %v", name, listed, group, addresses)
			}
			if join.DependsOn[name].Condition != types.ServiceConditionHealthy {
				return 0, fmt.Errorf("service join does not wait for %s", name)
			}
		}
	}
	return nodes, nil
}

// node returns the group of a node, or nothing for a service that isn't one.
func node(project *types.Project, service types.ServiceConfig) (string, error) {
	value := func(name string) string {
		if found := service.Environment[name]; found != nil {
			return *found
		}
		return ""
	}
	role := value("SHARDKV_ROLE")
	if role == "" {
		return "", nil
	}
	gid := value("SHARDKV_GID")
	switch {
	case role == "controller" && gid == "":
		gid = "0"
	case role == "shards" && gid != "" && value("SHARDKV_CONTROLLERS") != "":
	default:
		return "", fmt.Errorf("role %q, gid %q, controllers %q don't go together", role, gid, value("SHARDKV_CONTROLLERS"))
	}
	if advertised := value("SHARDKV_ADVERTISE"); advertised != service.Name+":7400" {
		return "", fmt.Errorf("it advertises %q", advertised)
	}
	if service.HealthCheck == nil || len(service.HealthCheck.Test) == 0 {
		return "", fmt.Errorf("it has no health check")
	}
	if len(service.Volumes) != 1 || service.Volumes[0].Target != "/data" || service.Volumes[0].Type != "volume" {
		return "", fmt.Errorf("it has no volume at /data")
	}
	volume := service.Volumes[0].Source
	for other, config := range project.Services {
		for _, mounted := range config.Volumes {
			if other != service.Name && mounted.Source == volume {
				return "", fmt.Errorf("its volume %s is %s's too", volume, other)
			}
		}
	}
	return gid, nil
}
