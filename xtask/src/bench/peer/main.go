// Drives the engine of kube-network-policies on a generated cluster, for `cargo xtask bench policy`.
//
//	peer OBJECTS FLOWS
//
// OBJECTS holds a Kubernetes object a line, FLOWS a list of new connections. The objects go straight into the stores
// that the engine's listers read, as its own tests do it. It prints one line when it is ready: the verdict of every flow.
// For every line on stdin it then asks all flows once, and prints the nanoseconds that a verdict took.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"runtime"
	_ "unsafe" // for go:linkname

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	npav1alpha1 "sigs.k8s.io/network-policy-api/apis/v1alpha1"
	npafake "sigs.k8s.io/network-policy-api/pkg/client/clientset/versioned/fake"
	npainformers "sigs.k8s.io/network-policy-api/pkg/client/informers/externalversions"

	engine "sigs.k8s.io/kube-network-policies/pkg/networkpolicy"
)

// packet has the layout of the engine's own type, which it does not export.
type packet struct {
	id      uint32
	family  v1.IPFamily
	srcIP   net.IP
	dstIP   net.IP
	proto   v1.Protocol
	srcPort int
	dstPort int
	payload []byte
}

// The one entry of the engine: what it does with the first packet of a connection. Not exported either.
//
//go:linkname evaluatePacket sigs.k8s.io/kube-network-policies/pkg/networkpolicy.(*Controller).evaluatePacket
func evaluatePacket(c *engine.Controller, ctx context.Context, p packet) bool

type flow struct {
	Source      string `json:"source"`
	Destination string `json:"destination"`
	Protocol    string `json:"protocol"`
	Port        int    `json:"port"`
}

func main() {
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(objects, flows string) error {
	controller, err := load(objects)
	if err != nil {
		return err
	}
	packets, err := packets(flows)
	if err != nil {
		return err
	}
	// The thread's own clock stands still while others have the core, and does not count the garbage collector.
	runtime.LockOSThread()
	ctx := context.Background()
	verdicts := make([]bool, len(packets))
	ask := func() {
		for n := range packets {
			verdicts[n] = evaluatePacket(controller, ctx, packets[n])
		}
	}
	ask()
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(verdicts); err != nil {
		return err
	}
	orders := bufio.NewScanner(os.Stdin)
	for orders.Scan() {
		start := now()
		ask()
		if err := out.Encode(float64(now()-start) / float64(len(packets))); err != nil {
			return err
		}
	}
	return orders.Err()
}

func now() int64 {
	var time unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &time); err != nil {
		panic(err)
	}
	return time.Nano()
}

func load(path string) (*engine.Controller, error) {
	client, npaClient := fake.NewSimpleClientset(), npafake.NewSimpleClientset()
	core := informers.NewSharedInformerFactory(client, 0)
	npa := npainformers.NewSharedInformerFactory(npaClient, 0)
	policies, namespaces := core.Networking().V1().NetworkPolicies(), core.Core().V1().Namespaces()
	pods, nodes := core.Core().V1().Pods(), core.Core().V1().Nodes()
	admin, baseline := npa.Policy().V1alpha1().AdminNetworkPolicies(), npa.Policy().V1alpha1().BaselineAdminNetworkPolicies()
	controller, err := engine.NewController(client, policies, namespaces, pods, nodes, npaClient, admin, baseline,
		engine.Config{AdminNetworkPolicy: true, BaselineAdminNetworkPolicy: true, NodeName: "bench"})
	if err != nil {
		return nil, err
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var kind struct {
			Kind string `json:"kind"`
		}
		if err := json.Unmarshal(lines.Bytes(), &kind); err != nil {
			return nil, err
		}
		var object any
		store := pods.Informer().GetStore()
		switch kind.Kind {
		case "Pod":
			object = &v1.Pod{}
		case "Namespace":
			object, store = &v1.Namespace{}, namespaces.Informer().GetStore()
		case "NetworkPolicy":
			object, store = &networkingv1.NetworkPolicy{}, policies.Informer().GetStore()
		case "AdminNetworkPolicy":
			object, store = &npav1alpha1.AdminNetworkPolicy{}, admin.Informer().GetStore()
		case "BaselineAdminNetworkPolicy":
			object, store = &npav1alpha1.BaselineAdminNetworkPolicy{}, baseline.Informer().GetStore()
		default:
			return nil, fmt.Errorf("a %q is not expected", kind.Kind)
		}
		if err := json.Unmarshal(lines.Bytes(), object); err != nil {
			return nil, err
		}
		if err := store.Add(object); err != nil {
			return nil, err
		}
	}
	return controller, lines.Err()
}

func packets(path string) ([]packet, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var flows []flow
	if err := json.Unmarshal(text, &flows); err != nil {
		return nil, err
	}
	packets := make([]packet, 0, len(flows))
	for _, flow := range flows {
		packets = append(packets, packet{
			family:  v1.IPv4Protocol,
			srcIP:   net.ParseIP(flow.Source),
			dstIP:   net.ParseIP(flow.Destination),
			proto:   v1.Protocol(flow.Protocol),
			srcPort: 40000,
			dstPort: flow.Port,
		})
	}
	return packets, nil
}
